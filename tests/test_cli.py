"The command, as a user gives it: what it leaves, what it prints, and that the same command gives the same numbers."
import json, os, re, sys

import nbformat, numpy as np, pandas as pd, pytest, torch
from common import assert_same, in_browser, open_browser, rsu, shell, small, state
from rsu.core.datasets import digits
from rsu.core.recipe import small_cnn
from rsu.core.store import read_shard

documented = {'run.json', 'ranking.parquet', 'stages.parquet', 'runs.parquet', 'table.parquet', 'model.safetensors', 'unlearned.safetensors', 'run.toml',
              'bank', 'oracles', 'report.ipynb', 'report.html'}

def test_leaves_the_documented_files(whole):
    assert {p.name for p in whole.out.iterdir()} == documented
    assert len(list((whole.out/'bank').glob('reference-*.safetensors'))) == 4
    assert len(list((whole.out/'oracles').glob('oracle-*.safetensors'))) == 2
    assert not list(whole.out.rglob('*.part'))

def test_prints_the_table_and_names_the_report(whole):
    lines = whole.done.stdout.strip().split('\n')
    assert lines[-1] == 'Report: out/report.html'
    assert [re.split(r'\s{2,}', o)[0] for o in lines[-7:-1]] == ['do nothing', 'one-shot', 'shuffled', 'reversed', 'unlearned', 'retrain']
    assert not any(f'{i}/5 ' not in whole.done.stdout for i in range(1, 6))

def test_the_controls_are_told_by_the_same_samples(whole):
    from rsu.evaluation.intervals import differences
    apart = differences(pd.read_parquet(whole.out/'runs.parquet'), 'unlearned', 'distance')
    assert set(apart.over[apart.model != 'retrain']) <= {'samples', ''} and (apart.over == 'samples').any() # '' where a control came to the same model
    page = re.sub('<[^>]+>', '', (whole.out/'report.html').read_text(encoding='utf-8'))
    controls = 'all groups in one stage|same groups in a random order|same groups in the opposite order'
    number = r'[+-][\d.]+'
    intervals = dict(re.findall(rf'({controls})[^(]*\(tug of war [\d.]+ against [\d.]+, {number}, '
                                rf'(95% interval {number} to {number}, p |no interval)', page))
    known = apart.set_index('model').over
    assert len(intervals) == 3
    assert intervals['all groups in one stage'].startswith('95%' if known['one-shot'] else 'no interval')

def test_says_nothing_on_stderr_where_all_is_well(whole):
    assert whole.done.stderr == ''

def test_the_same_command_again_has_nothing_to_do(whole):
    before = state(whole.out)
    # as `python -m rsu`, which is the same command
    done = shell('run', *small, '--out', 'out', cwd=whole.cwd, command=(sys.executable, '-m', 'rsu'))
    assert done.returncode == 0, done.stderr
    assert state(whole.out) == before
    assert '1/5' not in done.stdout and done.stdout.split('\n')[-8:] == whole.done.stdout.split('\n')[-8:]

def test_other_settings_in_the_same_folder_are_refused(whole):
    before = state(whole.out)
    done = shell('run', *small, '--seed', '1', '--out', 'out', cwd=whole.cwd)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'Traceback' not in done.stderr
    assert 'seed (0 there, 1 here)' in done.stderr
    assert state(whole.out) == before

def test_a_changed_request_is_not_answered_by_the_old_run(here, no_report, capsys):
    ask = [*small, '--ranker', 'random', '--forget', 'ids.csv', '--out', 'out']
    (here/'ids.csv').write_text('id\n' + '\n'.join(map(str, range(12))), encoding='utf-8')
    assert no_report(*ask) == 0
    (here/'ids.csv').write_text('id\n' + '\n'.join(map(str, range(20, 32))), encoding='utf-8')
    assert no_report(*ask) == 2, 'the report of another forget set was given as the answer'
    assert capsys.readouterr().err.count('\n') == 1

@pytest.mark.parametrize('command', [(rsu,), (sys.executable, '-m', 'rsu')], ids=['rsu', 'python -m rsu'])
def test_help(command, tmp_path):
    done = shell('run', '--help', cwd=tmp_path, command=command, env={**os.environ, 'COLUMNS': '120'})
    assert done.returncode == 0 and done.stderr == ''
    assert done.stdout.startswith('usage: rsu run ')
    from rsu.app.settings import Settings
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

def test_forget_a_fraction(here, no_report):
    for seed in (0, 1): assert no_report(*small, '--ranker', 'random', '--forget', 'random:0.05', '--seed', seed, '--out', f'{seed}') == 0
    at, other = (set(pd.read_parquet(f'{seed}/ranking.parquet').position) for seed in (0, 1))
    assert len(at) == len(other) == 15 and at != other and at | other < set(range(300))

@pytest.mark.parametrize('forget, groups', [('random:1', 1), ('random:2', 2)])
def test_a_person_with_a_single_sample(forget, groups, here, no_report):
    # a group of one: batch statistics of one sample do not exist, and yet it must be forgotten
    assert no_report(*small, '--ranker', 'confidence', '--forget', forget, '--groups', groups, '--out', 'out') == 0
    assert len(pd.read_parquet('out/ranking.parquet')) == int(forget[-1])

def test_top_is_the_riskiest_of_the_whole_training_set(here, no_report):
    assert no_report(*small, '--ranker', 'confidence', '--forget', 'top:12', '--out', 'out') == 0
    # the margin anew, from the weights in the folder: log p - log (1 - p), in double precision
    net = small_cnn(1, 10)
    net.load_state_dict(read_shard(here/'out'/'model.safetensors')[0])
    x, y = (t.cpu() for t in digits(n=300).train_ds.tensors)
    with torch.no_grad(): p = net.eval()(x).double().softmax(1)[range(300), y]
    risk = -(p.log() - (1-p).log()).numpy()
    df = pd.read_parquet('out/ranking.parquet')
    assert list(df.position) == list(np.argsort(-risk)[:12])
    np.testing.assert_allclose(df.score, np.sort(risk)[::-1][:12], rtol=1e-3)

def test_the_same_seed_gives_the_same_run(whole, here, no_report):
    # in another folder and another process, whose generators are in another state
    torch.manual_seed(5); np.random.seed(5)
    assert no_report(*small, '--out', 'elsewhere') == 0
    assert_same(whole.out, here/'elsewhere')

def test_another_seed_gives_another_run(whole, here, no_report):
    assert no_report(*small, '--seed', '3', '--out', 'out') == 0
    assert set(pd.read_parquet('out/ranking.parquet').position) != set(pd.read_parquet(whole.out/'ranking.parquet').position)
    with pytest.raises(AssertionError): assert_same(whole.out, here/'out')

def test_the_page_is_whole(whole):
    page = (whole.out/'report.html').read_text(encoding='utf-8')
    assert not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//', page) and '<script' not in page and '@import' not in page
    assert page.count('data:image/png;base64,') >= 5

def test_the_notebook_ran_without_an_error(whole):
    cells = nbformat.read(whole.out/'report.ipynb', as_version=4).cells
    outputs = [o for c in cells if c.cell_type == 'code' for o in c.outputs]
    assert outputs and all(c.execution_count for c in cells if c.cell_type == 'code')
    assert [o for o in outputs if o.output_type == 'error' or o.get('name') == 'stderr'] == []

@in_browser
def test_the_page_in_a_browser(whole):
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
    assert headings[0] == 'Unlearning report' and {'What was requested', 'What was done', 'What the evidence supports', 'What it does not support', 'Who was at risk', 'Appendix: to repeat it', 'Appendix: every figure'} < set(headings)
    assert len(drawn) >= 5 and all(drawn)
    assert wide <= 0, 'the page is wider than the window'

@pytest.mark.parametrize('name', ['learningspeed', 'rmia', 'memorization', 'gradnorm', 'holdoutretrain', 'el2n'])
def test_rankers_by_name(name, here, no_report):
    assert no_report(*small, '--ranker', name, '--out', 'out') == 0
    df = pd.read_parquet('out/ranking.parquet')
    assert len(df) == 12 and np.isfinite(df.score).all()
    assert json.loads((here/'out'/'run.json').read_text(encoding='utf-8'))['ranker'].startswith(name)

def test_a_record_of_training_is_kept(whole, here, no_report):
    # a run that reads a record trains the same model, and takes the record up when it is started again
    ask = [*small, '--ranker', 'learningspeed', '--out', 'out']
    assert no_report(*ask) == 0
    model = read_shard(here/'out'/'model.safetensors')[0]
    for k, v in read_shard(whole.out/'model.safetensors')[0].items(): assert torch.equal(model[k], v)
    first, before = pd.read_parquet('out/ranking.parquet'), state(here/'out')
    for gone in (['table.parquet'], ['table.parquet', 'record.safetensors']):
        for k in gone: (here/'out'/k).unlink()
        assert no_report(*ask) == 0
        pd.testing.assert_frame_equal(pd.read_parquet('out/ranking.parquet'), first)
    after = state(here/'out')
    assert after['record.safetensors'][1] == before['record.safetensors'][1]

def test_an_algorithm_of_ones_own_by_name_and_by_the_file_that_it_left(here, no_report):
    (here/'clinic_algorithm.py').write_text(
        'from rsu.all import *\nclass Milder(FineTune):\n    softness:float=.5\n'
        '    def rate(self, epoch): return self.softness\n', encoding='utf-8')
    assert no_report(*small, '--ranker', 'random', '--algorithm', 'clinic_algorithm:Milder,none', '--out', 'one') == 0
    assert 'kind = "clinic_algorithm:Milder"' in (here/'one'/'run.toml').read_text(encoding='utf-8')
    # in a process that knows no such class, with the report, which knows none either
    done = shell('run', '--config', 'one/run.toml', '--out', 'two', cwd=here)
    assert done.returncode == 0, done.stderr
    assert_same(here/'one', here/'two')
    assert 'Milder' in (here/'two'/'report.html').read_text(encoding='utf-8')
