"`rsu run`: the files that it leaves, what it prints, and that the same command gives the same numbers."
import json, os, re, shutil, sys

import nbformat, numpy as np, pandas as pd, pytest, torch
from common import assert_same, call, clinic_request, in_browser, open_browser, request, rsu, shell, small, state
from rsu import __version__
from rsu.algorithms.teacher import SCRUB
from rsu.app.pipeline import search_summary
from rsu.app.report import carried_out, load_run
from rsu.app.settings import Settings, found_toml, from_toml, parser
from rsu.core.config import value_classes
from rsu.core.datasets import digits, mislabel
from rsu.core.indexing import targets
from rsu.core.recipe import Recipe, small_cnn
from rsu.core.split import ForgetSplit
from rsu.core.store import read_shard

documented = {'run.json', 'run.toml', 'ranking.parquet', 'stages.parquet', 'changes.parquet', 'runs.parquet',
              'table.parquet', 'model.safetensors', 'unlearned.safetensors', 'bank', 'oracles', 'report.ipynb',
              'report.html'}

def test_a_run_leaves_the_documented_files(whole):
    assert {p.name for p in whole.out.iterdir()} == documented
    assert len(list((whole.out/'bank').glob('reference-*.safetensors'))) == 4
    assert len(list((whole.out/'oracles').glob('oracle-*.safetensors'))) == 2
    assert not list(whole.out.rglob('*.part'))

def test_a_run_prints_the_table_and_the_path_of_the_report(whole):
    lines = whole.done.stdout.strip().split('\n')
    assert lines[-1] == 'Report: out/report.html'
    models = [re.split(r'\s{2,}', o)[0] for o in lines[-7:-1]]
    assert models == ['do nothing', 'one-shot', 'shuffled', 'reversed', 'unlearned', 'retrain']
    assert all(f'{i}/5 ' in whole.done.stdout for i in range(1, 6))

def test_the_report_compares_controls_on_the_same_samples(whole):
    from rsu.evaluation.intervals import differences
    apart = differences(pd.read_parquet(whole.out/'runs.parquet'), 'unlearned', 'distance')
    # over is '' where a control gives the same model
    assert set(apart.over[apart.model != 'retrain']) <= {'samples', ''} and (apart.over == 'samples').any()
    page = re.sub('<[^>]+>', '', (whole.out/'report.html').read_text(encoding='utf-8'))
    number = r'[+-][\d.]+'
    intervals = dict(re.findall(rf'(one-shot|shuffled|reversed)\s+[\d.]+\s+{number} '
                                rf'\((no interval|{number} to {number})\)', page))
    known = apart.set_index('model').over
    assert len(intervals) == 3
    assert all((intervals[k] == 'no interval') == (not known[k]) for k in intervals)

def test_a_run_prints_nothing_on_stderr(whole):
    assert whole.done.stderr == ''

@pytest.fixture
def copied(whole, here):
    "A copy of the finished run"
    shutil.copytree(whole.out, here/'out')
    return here/'out'

def test_the_same_command_again_has_nothing_to_do(whole, copied, capsys):
    before = state(copied)
    assert call('run', *small, '--out', 'out') == 0
    assert state(copied) == before
    printed = capsys.readouterr().out
    assert '1/5' not in printed and printed.split('\n')[-8:] == whole.done.stdout.split('\n')[-8:]

def test_other_settings_in_the_same_folder_are_refused(copied, capsys):
    before = state(copied)
    assert call('run', *small, '--seed', '1', '--out', 'out') == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'seed (0 there, 1 here)' in err
    assert state(copied) == before

def test_a_changed_request_in_the_same_folder_is_refused(here, no_report, capsys):
    options = [*small, '--ranker', 'random', '--forget', 'ids.csv', '--out', 'out']
    (here/'ids.csv').write_text('id\n' + '\n'.join(map(str, range(12))), encoding='utf-8')
    assert no_report(*options) == 0
    (here/'ids.csv').write_text('id\n' + '\n'.join(map(str, range(20, 32))), encoding='utf-8')
    assert no_report(*options) == 2, 'the report of another forget set was given as the answer'
    assert capsys.readouterr().err.count('\n') == 1

@pytest.mark.parametrize('command', ['', 'run', 'tune', 'forget', 'rank', 'evaluate', 'info'])
def test_help_fits_eighty_columns_and_shows_examples(command, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    assert call(*filter(None, [command]), '--help') == 0
    text = capsys.readouterr().out
    assert max(map(len, text.split('\n'))) <= 80
    if command: assert f'examples:\n  rsu {command}' in text

def test_the_command_alone_prints_its_help_and_its_version(capsys):
    assert call() == 0
    text = capsys.readouterr().out
    assert text.startswith('usage: rsu ') and call('--help') == 0 and capsys.readouterr().out == text
    assert call('--version') == 0 and capsys.readouterr().out == f'rsu {__version__}\n'

def test_names_are_accepted_in_any_case_and_stored_in_lower_case(here):
    given = Settings('Digits', ranker='LiRA', algorithm='SCRUB,None,NegGradPlus', network='Small_CNN', rerank='EL2N')
    assert given == Settings('digits', ranker='lira', algorithm='scrub,none,neggradplus', network='small_cnn',
                             rerank='el2n')
    options = vars(parser().parse_args('run --data DIGITS --ranker RMIA --repair FineTune --out x'.split()))
    settings = {k: v for k, v in options.items() if k in Settings._names()}
    assert Settings(**settings) == Settings('digits', ranker='rmia', repair='finetune')
    (here/'run.toml').write_text('data = "Digits"\nalgorithm = [{kind = "scrub", lr = 0.1}, "SalUn"]', encoding='utf-8')
    assert Settings(**from_toml('run.toml')) == Settings('digits', algorithm=(SCRUB(lr=.1), 'salun'))

def test_a_result_is_printed_as_json_and_progress_on_stderr(copied, capsys):
    assert call('run', *small, '--out', 'out', '--json') == 0
    printed = json.loads(capsys.readouterr().out)
    table = pd.read_parquet('out/table.parquet')
    assert printed['report'] == 'out/report.html' and [o['model'] for o in printed['table']] == [*table.index]
    assert [o['tow'] for o in printed['table']] == pytest.approx([*table.tow])

def test_a_run_is_described(copied, capsys):
    assert call('info', 'out', '--json') == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts['complete'] and facts['command'].startswith('rsu run') and facts['missing'] == []
    assert (facts['kind'], facts['reference models'], facts['oracles']) == ('run', 4, 2)
    (copied/'table.parquet').unlink()
    assert call('info', 'out') == 0
    text = capsys.readouterr().out
    assert re.search(r'complete +no\n', text) and re.search(r'missing +table.parquet\n', text)
    assert call('info', 'out/bank', '--json') == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts['kind'], facts['reference models']) == ('reference bank', 4)
    (copied/'bank'/'bank.json').write_text('[', encoding='utf-8')
    assert call('info', 'out/bank') == 2 and 'bank.json' in capsys.readouterr().err

def test_ranking_alone_equals_the_ranking_of_a_run(whole, here, capsys):
    options = '--data digits --n 300 --forget random:12 --references 4 --train-epochs 2'.split()
    assert call('rank', *options, '--out', 'risk', '--json') == 0
    printed = capsys.readouterr()
    df, of_run = pd.read_csv('risk/ranking.csv'), pd.read_parquet(whole.out/'ranking.parquet')
    assert list(df.id) == list(of_run.position) and list(df['rank']) == list(range(1, 13))
    np.testing.assert_allclose(df.score, of_run.score)
    assert [o['id'] for o in json.loads(printed.out)['ranking']] == list(df.id) and '2/2 Ranking' in printed.err
    before = state(here/'risk'/'bank')
    assert call('rank', *options, '--out', 'risk') == 0 and state(here/'risk'/'bank') == before
    assert call('rank', *options, '--seed', 5, '--out', 'risk') == 2

def test_a_ranking_of_weights_uses_a_bank_and_selects_the_riskiest(whole, here, capsys):
    options = ['--data', 'digits', '--n', 300, '--train-epochs', 2, '--weights', whole.out/'model.safetensors']
    assert call('rank', *options, '--bank', whole.out/'bank', '--forget', 'top:7', '--out', 'risk', '--top', 2) == 0
    printed = capsys.readouterr().out
    df = pd.read_csv('risk/ranking.csv')
    assert len(df) == 7 and df.score.is_monotonic_decreasing and 'Ranking of 7 samples: risk/ranking.csv' in printed
    assert len(ForgetSplit(digits(n=300), 'risk/ranking.csv')) == 7
    assert not (here/'risk'/'bank').exists()

def test_an_evaluation_of_files_equals_that_of_the_run(whole, here, capsys):
    options = '--data digits --n 300 --forget random:12 --oracles 2 --train-epochs 2'.split()
    (here/'check').mkdir()
    shutil.copytree(whole.out/'oracles', here/'check'/'oracles') # to save the time of their training
    files = ['--weights', whole.out/'model.safetensors', '--unlearned', whole.out/'unlearned.safetensors']
    assert call('evaluate', *options, *files, '--out', 'check', '--json') == 0
    rows = {o['model']: o for o in json.loads(capsys.readouterr().out)['table']}
    of_run = pd.read_parquet(whole.out/'table.parquet')
    for name in ('do nothing', 'unlearned', 'retrain'):
        for measure in ('forget', 'tow', 'auc'): assert rows[name][measure] == pytest.approx(of_run[measure][name])
    assert rows['unlearned']['seconds'] is None
    assert len([*(here/'check'/'oracles').glob('*.safetensors')]) == 2

def test_commands_on_a_users_model(in_clinic, no_page, capsys):
    own = '--data clinic_data:loaders --weights clinic.safetensors --by person'.split()
    request(*(f'patient-{i}' for i in (4, 2)))
    ranked = [*own, '--model', 'clinic_data:network', '--ranker', 'confidence', '--forget', 'erase.csv']
    assert call('rank', *ranked, '--out', 'risk') == 0
    df = pd.read_csv('risk/ranking.csv')
    assert sorted(df.id) == [4, 5, 8, 9] and [*df.person] == [f'patient-{i//2}' for i in df.id]
    compared = [*own, '--unlearned', 'clinic.safetensors', '--forget', 'erase.csv', '--oracles', 2, '--out', 'check']
    capsys.readouterr()
    assert call('evaluate', *compared, '--model', 'clinic_data:network') == 2
    assert 'recipe' in capsys.readouterr().err and not (in_clinic/'check').exists()
    assert call('evaluate', *compared, '--model', 'clinic_data:learner', '--json') == 0
    rows = {o['model']: o for o in json.loads(capsys.readouterr().out)['table']}
    assert rows['unlearned']['tow'] == rows['do nothing']['tow'] and rows['unlearned']['ratio'] is None
    assert call(*clinic_request, '--forget', 'erase.csv', '--out', 'requests', '--json') in (0, 3)
    printed = capsys.readouterr()
    assert json.loads(printed.out)['reports'] == ['requests/report-0001.html'] and 'Request 1' in printed.err
    assert call('info', 'requests', '--json') == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts['kind'], facts['requests'], facts['samples forgotten']) == ('ledger', 1, 4)
    assert len(facts['copies to purge']) >= 1 and not facts['complete'] and 'patient' not in str(facts)

@pytest.mark.parametrize('command', [(rsu,), (sys.executable, '-m', 'rsu')], ids=['rsu', 'python -m rsu'])
def test_help_names_every_option(command, tmp_path):
    done = shell('run', '--help', cwd=tmp_path, command=command, env={**os.environ, 'COLUMNS': '120'})
    assert done.returncode == 0 and done.stderr == ''
    assert done.stdout.startswith('usage: rsu run ')
    for name in [*Settings._names(), 'out']: assert f"--{name.replace('_', '-')} " in done.stdout
    assert max(map(len, done.stdout.split('\n'))) <= 120

@pytest.mark.parametrize('forget, right', [
    ('class:3', lambda dls: np.flatnonzero(dls.train_ds.tensors[1].cpu().numpy() == 3)),
    ('ids.csv', lambda dls: [4, 7, 40, 41, 99, 100, 250, 251, 260, 299])])
def test_forget_names_the_right_positions(forget, right, here, no_report):
    ids = map(str, [299, 4, 7, 250, 40, 41, 99, 100, 251, 260])
    (here/'ids.csv').write_text("id\n" + "\n".join(ids), encoding='utf-8')
    assert no_report(*small, '--ranker', 'confidence', '--forget', forget, '--out', 'out') == 0
    df = pd.read_parquet('out/ranking.parquet')
    assert sorted(df.position) == list(right(digits(n=300)))
    assert (df.label == digits(n=300).train_ds.tensors[1].cpu().numpy()[df.position]).all()
    assert list(df['rank']) == list(range(1, len(df)+1)) and df.score.is_monotonic_decreasing

def test_a_fraction_is_drawn_by_the_seed(here, no_report):
    options = [*small, '--ranker', 'random', '--forget', 'random:0.05', '--algorithm', 'finetune', '--n-epoch', 1]
    for seed in (0, 1): assert no_report(*options, '--seed', seed, '--out', f'{seed}') == 0
    at, other = (set(pd.read_parquet(f'{seed}/ranking.parquet').position) for seed in (0, 1))
    assert len(at) == len(other) == 15 and at != other and at | other < set(range(300))

@pytest.mark.parametrize('forget, groups', [('random:1', 1), ('random:2', 2)])
def test_a_single_sample_can_be_forgotten(forget, groups, here, no_report):
    # a group of one sample, for which batch statistics do not exist, must be forgotten too
    assert no_report(*small, '--ranker', 'confidence', '--forget', forget, '--groups', groups, '--out', 'out') == 0
    assert len(pd.read_parquet('out/ranking.parquet')) == int(forget[-1])

def test_top_selects_the_riskiest_training_samples(here, no_report):
    assert no_report(*small, '--ranker', 'confidence', '--forget', 'top:12', '--out', 'out') == 0
    # the margins computed from the stored weights in double precision: log p - log (1 - p)
    net = small_cnn(1, 10)
    net.load_state_dict(read_shard(here/'out'/'model.safetensors')[0])
    x, y = (t.cpu() for t in digits(n=300).train_ds.tensors)
    with torch.no_grad(): p = net.eval()(x).double().softmax(1)[range(300), y]
    risk = -(p.log() - (1-p).log()).numpy()
    df = pd.read_parquet('out/ranking.parquet')
    assert list(df.position) == list(np.argsort(-risk)[:12])
    np.testing.assert_allclose(df.score, np.sort(risk)[::-1][:12], rtol=1e-3)

def test_mislabelled_samples_are_trained_on_and_forgotten(here, no_report, capsys):
    options = [*small, '--forget', 'mislabelled:12', '--ranker', 'confidence', '--out', 'out']
    assert no_report(*options) == 0
    assert '12 random training samples get a wrong label (seed 0)' in capsys.readouterr().out
    dls, wrong = mislabel(digits(n=300), 12)
    run = load_run('out')
    assert list(run.ranking.forget) == list(wrong)
    assert list(run.ranking.y) == list(targets(dls))
    assert '12 random training samples get a wrong label' in carried_out(run)
    assert '# Before the training' in (here/'out'/'run.toml').read_text(encoding='utf-8')
    model = Recipe(small_cnn, n_epoch=2, lr=5e-3).fit(dls, quiet=True).model.state_dict()
    for k, v in read_shard(here/'out'/'model.safetensors')[0].items(): assert torch.equal(model[k].cpu(), v)

def test_a_search_on_mislabelled_samples_uses_its_own_seed(here, capsys):
    options = '--data digits --n 300 --forget mislabelled:12 --train-epochs 1 --oracles 2 --budget 10'.split()
    assert call('tune', *options, '--algorithm', 'finetune', '--out', 'search') == 0
    assert '12 random training samples get a wrong label (seed 1000)' in capsys.readouterr().out
    row, = json.loads((here/'search'/'settings.json').read_text(encoding='utf-8'))
    assert (row['forget'], row['seed']) == ('mislabelled:12', 1000)

def test_a_search_prints_how_its_settings_are_used(here, capsys):
    row = dict(settings=dict(kind='FineTune', lr=.02), score=.91, given=.9, nothing=.95, retrained=.99)
    found = pd.DataFrame([dict(row, settings=dict(kind='SCRUB', lr=.1), score=.97), row])
    text = search_summary(found, 'search')
    assert 'rsu run --config search/scrub.toml --out FOLDER\n  SCRUB(lr=0.1)' in text
    assert text.count('worse than doing nothing (0.910 against 0.950)') == text.count('Warning') == 1
    assert re.split(r'\s{2,}', text.split('\n')[4]) == ['finetune', '0.91', '0.9', '0.95', '0.99']
    searched = Settings('digits', forget='top:9', n=300, seed=1000)
    (here/'scrub.toml').write_text(found_toml(searched, SCRUB(lr=.1)), encoding='utf-8')
    assert Settings(**from_toml('scrub.toml')) == searched.replace(algorithm=SCRUB(lr=.1), seed=0)

def test_the_same_seed_gives_the_same_run(whole, here, no_report):
    # in another folder and process, where random generators have another state
    torch.manual_seed(5)
    np.random.seed(5)
    assert no_report(*small, '--out', 'elsewhere') == 0
    assert_same(whole.out, here/'elsewhere')

def test_another_seed_gives_another_run(whole, here, no_report):
    assert no_report(*small, '--seed', '3', '--out', 'out') == 0
    positions, others = (set(pd.read_parquet(o/'ranking.parquet').position) for o in (here/'out', whole.out))
    assert positions != others
    with pytest.raises(AssertionError): assert_same(whole.out, here/'out')

def test_the_report_is_one_self_contained_file(whole):
    page = (whole.out/'report.html').read_text(encoding='utf-8')
    assert not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//', page)
    assert '<script' not in page and '@import' not in page
    assert page.count('data:image/png;base64,') >= 5

def test_each_picture_of_the_report_is_described(whole):
    page = (whole.out/'report.html').read_text(encoding='utf-8')
    pictures = re.findall(r'<img[^>]*>', page)
    descriptions = [re.search(r'alt="([^"]*)"', o)[1] for o in pictures]
    assert len({*descriptions}) == len(pictures) >= 6 and min(map(len, descriptions)) > 20
    assert 'No description' not in page

def test_the_report_notebook_has_no_errors(whole):
    cells = nbformat.read(whole.out/'report.ipynb', as_version=4).cells
    outputs = [o for c in cells if c.cell_type == 'code' for o in c.outputs]
    assert outputs and all(c.execution_count for c in cells if c.cell_type == 'code')
    assert [o for o in outputs if o.output_type == 'error' or o.get('name') == 'stderr'] == []

@in_browser
def test_the_report_opens_in_a_browser_without_errors(whole):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = open_browser(p)
        tab = browser.new_page()
        asked, complaints = [], []
        tab.on('request', lambda r: asked.append(r.url))
        tab.on('console', lambda m: complaints.append(m.text) if m.type in ('error', 'warning') else None)
        tab.on('pageerror', lambda e: complaints.append(str(e)))
        home = (whole.out/'report.html').as_uri()
        tab.goto(home, wait_until='networkidle')
        headings = [h.strip('¶ \n') for h in tab.locator('h1:visible, h2:visible').all_inner_texts()]
        drawn = tab.eval_on_selector_all('img', 'els => els.map(e => e.naturalWidth > 0)')
        wide = tab.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth')
        browser.close()
    assert {a for a in asked if a != home and not a.startswith('data:')} == set() and complaints == []
    assert headings[0] == 'Unlearning report'
    assert {'What the evidence supports', 'What it does not support', 'What was done, stage by stage',
            'Who was at risk', 'Words in this report', 'Appendix: to repeat it',
            'Appendix: every figure'} < set(headings)
    assert len(drawn) >= 5 and all(drawn)
    assert wide <= 0, 'the page is wider than the window'

@pytest.mark.parametrize('name',
                         ['learningspeed', 'rmia', 'memorization', 'gradnorm', 'holdoutretrain', 'selfinfluence'])
def test_rankers_are_selected_by_name(name, here, no_report):
    assert no_report(*small, '--ranker', name, '--out', 'out') == 0
    df = pd.read_parquet('out/ranking.parquet')
    assert len(df) == 12 and np.isfinite(df.score).all()
    assert json.loads((here/'out'/'run.json').read_text(encoding='utf-8'))['ranker'].startswith(name)

def test_a_record_of_training_is_stored_and_read(whole, here, no_report):
    # a run that records its training trains the same model, and reads the record when it is started again
    options = [*small, '--ranker', 'perinstanceprivacy', '--out', 'out']
    assert no_report(*options) == 0
    model = read_shard(here/'out'/'model.safetensors')[0]
    for k, v in read_shard(whole.out/'model.safetensors')[0].items(): assert torch.equal(model[k], v)
    first, before = pd.read_parquet('out/ranking.parquet'), state(here/'out')
    for gone in (['table.parquet'], ['table.parquet', 'record.safetensors']):
        for k in gone: (here/'out'/k).unlink()
        assert no_report(*options) == 0
        pd.testing.assert_frame_equal(pd.read_parquet('out/ranking.parquet'), first)
    after = state(here/'out')
    assert after['record.safetensors'][1] == before['record.safetensors'][1]

def test_a_users_algorithm_runs_by_name_and_from_the_stored_settings(here, no_report, monkeypatch):
    (here/'clinic_algorithm.py').write_text(
        'from rsu.all import *\nclass Milder(FineTune):\n    softness:float=.5\n'
        '    def rate(self, epoch): return self.softness\n', encoding='utf-8')
    assert no_report(*small, '--ranker', 'random', '--algorithm', 'clinic_algorithm:Milder,none', '--out', 'one') == 0
    assert 'kind = "clinic_algorithm:Milder"' in (here/'one'/'run.toml').read_text(encoding='utf-8')
    # as in a process that has not imported the class (tests/test_markup.py has the report of such a run)
    del sys.modules['clinic_algorithm']
    monkeypatch.delitem(value_classes, 'Milder')
    assert no_report('--config', 'one/run.toml', '--out', 'two') == 0
    assert 'clinic_algorithm' in sys.modules
    assert_same(here/'one', here/'two')
