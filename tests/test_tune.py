"`rsu tune`: a search that is killed and started again has the same result, and none of its runs is made twice."
import json, re, shutil, signal, subprocess, sys, time
from os import kill

import numpy as np, pandas as pd, pytest, torch
from common import call, ended, forked, start, wait_until
from filelock import FileLock
from rsu.all import (ByChance, Confidence, FineTune, ForgetSplit, NegGradPlus, Quantiles, Ranking, Recipe, SCRUB, SalUn,
                     SeqUnlearn, digits, small_cnn)
from rsu.core.config import InputError
from rsu.evaluation.tune import (Tuning, WorseThanNothing, _bounds, _search_key, settings_for, tune,
                                 tuned_settings)
from torch import nn

options = ('--data digits --n 300 --forget random:12 --algorithm gradascent --oracles 2 --train-epochs 2 --budget 12 '
           '--seed 1000').split()

def n_runs(out):
    "The number of finished runs in the search's file"
    text = (out/'search.jsonl').read_text(encoding='utf-8') if (out/'search.jsonl').exists() else ''
    return sum(json.loads(line).get('values') is not None for line in text.splitlines() if line.endswith('}'))

def found(out):
    "The settings that a search has found, without times"
    return [{k: v for k, v in r.items() if k not in ('seconds', 'command')}
            for r in json.loads((out/'settings.json').read_text(encoding='utf-8'))]

def test_a_killed_search_is_continued(here, capsys):
    assert call('tune', *options, '--out', 'whole') == 0
    capsys.readouterr()
    assert call('info', 'whole', '--json') == 0
    assert re.fullmatch(r'score -?0\.\d{3} after 12 runs', json.loads(capsys.readouterr().out)['found']['GradAscent'])
    # the same model and oracles, and a search for fewer runs that is killed
    cut = here/'cut'
    shutil.copytree(here/'whole'/'oracles', cut/'oracles')
    for name in ('model.safetensors', 'run.json'): shutil.copy(here/'whole'/name, cut/name)
    run = start('tune', *options, '--budget', '10', '--out', 'cut', cwd=here)
    wait_until(lambda: n_runs(cut) >= 3, run)
    run.kill()
    run.join()
    assert 3 <= n_runs(cut) < 9 and not (cut/'settings.json').exists()
    with FileLock(cut/'settings.lock'): # which a search of another algorithm holds while it writes
        log = here/'again.txt'
        again = start('tune', *options, '--out', 'cut', cwd=here, log=log)
        wait_until(lambda: log.exists() and 'GradAscent(' in log.read_text(encoding='utf-8'), again)
        time.sleep(1)
        assert again.is_alive() and not (cut/'settings.json').exists()
    assert ended(again) == 0
    assert n_runs(cut) == 12 and found(cut) == found(here/'whole')

def test_the_packages_tuned_settings_are_consistent():
    df = tuned_settings()
    df = df[df.command.str.startswith('rsu tune ')]
    assert len(df) > 20
    for r in df.itertuples():
        # the command agrees with the columns, and has a seed that no report uses
        assert f'--data {r.data} ' in r.command and f'--forget {r.forget} ' in r.command and '--seed 1000' in r.command
        assert settings_for(r.data, r.network, r.forget, r.settings.name) == r.settings
        assert r.nothing <= 1 and r.retrained <= 1 and r.runs >= 10
        assert r.seed == 1000 and r.forget.startswith('top:') == isinstance(r.ranker, str)
        # settings listed as being at an end of their range are within it, and in one list alone
        assert all(lo <= getattr(r.settings, k) <= hi for o in (r.edges, r.ends) for k, (lo, hi) in o.items())
        assert not set(r.edges) & set(r.ends)

def test_settings_for_says_where_the_settings_come_from(capsys):
    settings_for('digits', 'small_cnn', 'random:60', 'scrub')
    assert capsys.readouterr().out == ''
    settings_for('digits', 'small_cnn', 'random:20', 'scrub')
    words = 'The settings of scrub for random:20 were found with random:60 of 1,295 training samples\n'
    assert capsys.readouterr().out == words
    with pytest.raises(InputError, match='the searches of scrub are digits small_cnn random, digits'):
        settings_for('digits', 'small_cnn', 'worst:60', 'scrub')
    with pytest.raises(InputError, match='no tuned settings of SCRUB .*: the algorithms are .*, scrub, '):
        settings_for('digits', 'small_cnn', 'random:60', 'SCRUB')

def search(other_valid=False):
    "Search settings of an algorithm that is quick to run, and print the best"
    dls = digits(n=300)
    learn = Recipe(small_cnn, n_epoch=2, lr=5e-3).fit(dls, quiet=True)
    if other_valid: dls.loaders[1] = digits(seed=1, n=300).valid
    how = FineTune(bs=64)
    how.space = dict(n_epoch=(1,2), lr=(1e-3,1e-2))
    best = tune(learn, ForgetSplit(dls, 'random:12', seed=1), how, budget=10, oracles=2, path='search', quiet=True)
    print(best, best.tuning.score, len(best.tuning.trials))

def test_a_search_is_shared_by_processes_repaired_and_not_used_for_other_samples(here, capsys):
    def searched(*args):
        capsys.readouterr()
        search(*args)
        return capsys.readouterr().out.splitlines()
    both = [forked(search, cwd=here, log=f'{i}.txt') for i in range(2)]
    assert [ended(o) for o in both] == [0, 0]
    one, two = ((here/f'{i}.txt').read_text(encoding='utf-8').splitlines() for i in range(2))
    assert one == two and n_runs(here/'search') == 10
    # a damaged line and the lines after it are cut off, and the search continues to the same result
    file = here/'search'/'search.jsonl'
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b''.join(lines[:len(lines)//2]) + lines[len(lines)//2][:9] + b'\0\0\n' + lines[-1])
    again = searched()
    assert 'is damaged in line' in again[0] and again[1:] == one and n_runs(here/'search') == 10
    # scores on other validation samples are not used
    assert searched(True) != one and n_runs(here/'search') == 20

own = """
from rsu.all import *
class Milder(FineTune):
    space = dict(lr=(1e-3,1e-2))
    def rate(self, epoch): return .5
"""

def test_an_interrupted_search_of_a_users_algorithm_is_continued(here, capsys):
    (here/'mine.py').write_text(own, encoding='utf-8')
    command, out = ['tune', *options, '--algorithm', 'mine:Milder', '--out', 'out', '--budget'], here/'out'
    run = start(*command, '40', cwd=here)
    wait_until(lambda: n_runs(out) >= 2, run)
    kill(run.pid, signal.SIGINT)
    assert ended(run) == 130
    printed = (here/'log.txt').read_text(encoding='utf-8')
    assert 'repeat the command to resume' in printed and 'Traceback' not in printed
    before = n_runs(out)
    assert ended(start(*command, '12', cwd=here)) == 0 and n_runs(out) == 12 > before >= 2
    row, = json.loads((out/'settings.json').read_text(encoding='utf-8'))
    assert row['settings']['kind'] == 'Milder' and row['runs'] == 12 and row['seed'] == 1000
    # the result of fewer runs does not replace that of more
    assert ended(start(*command, '10', cwd=here)) == 0
    assert 'keeps the result of 12 runs' in (here/'log.txt').read_text(encoding='utf-8')
    assert json.loads((out/'settings.json').read_text(encoding='utf-8')) == [row]
    # runs of changed code are made again
    n_before = n_runs(out)
    (here/'mine.py').write_text(own.replace('.5', '.25'), encoding='utf-8')
    assert ended(start(*command, '12', cwd=here)) == 0 and n_runs(out) == n_before + 12
    # a damaged file is reported before any work
    (out/'settings.json').write_text('[{', encoding='utf-8')
    assert call(*command, '12') == 2
    printed = capsys.readouterr()
    assert 'is damaged' in printed.err and printed.err.count('\n') == 1 and 'Searching' not in printed.out

def test_a_failing_algorithm_does_not_end_the_search_of_others(here):
    (here/'mine.py').write_text(own + """
class Broken(FineTune):
    space = dict(lr=(1e-3,1e-2))
    def terms(self, epoch): return 1/0
""", encoding='utf-8')
    both = ['--algorithm', 'mine:Broken,mine:Milder', '--budget', '10', '--out', 'out']
    assert ended(start('tune', *options, *both, cwd=here)) == 2
    printed = (here/'log.txt').read_text(encoding='utf-8')
    assert 'ZeroDivisionError' in printed
    assert printed.splitlines()[-1].startswith('rsu: The search of mine:Broken failed')
    rows = json.loads((here/'out'/'settings.json').read_text(encoding='utf-8'))
    assert [r['settings']['kind'] for r in rows] == ['Milder']

def test_settings_that_diverge_are_not_chosen():
    learn = Recipe(small_cnn, n_epoch=6, lr=5e-3).fit(digits(n=300), quiet=True)
    wild = FineTune(bs=16, lr=30.)
    wild.space = dict(lr=(.001, 1000.))
    with pytest.warns(WorseThanNothing, match='worse than doing nothing .0.*: do not use them, but search with'):
        best = tune(learn, ForgetSplit(learn.dls, 'random:12', seed=1), wild, budget=10, oracles=2, quiet=True)
    runs = best.tuning.trials
    assert runs.ended.iloc[0] == 'diverged' and (runs.ended == 'diverged').sum() >= 2 and (runs.ended == 'done').any()
    # a diverged run restores the old weights, which may score higher than a finished run, and is not chosen
    assert (runs.ended[runs.lr == best.lr] == 'done').all() and best.tuning.diverged == 0
    assert 'of the runs diverged' in repr(best.tuning)
    assert runs.score[runs.ended == 'diverged'].max() >= best.tuning.score, 'choose a model for which this holds'

def with_space(how, **space):
    how.space = space
    return how

@pytest.mark.parametrize('space,words', [
    (dict(lr=(0, .1)), 'give a lower bound above 0'), (dict(lr=(1e-3, np.inf)), 'two numbers'),
    (dict(lr=(.1, .01)), 'give a lower bound above 0, and a higher upper bound'), (dict(lr=.1), 'two numbers'),
    (dict(n_epoch=(1, 2.5)), 'give two whole numbers'), (dict(n_epoch=(3, 3)), 'give two whole numbers'),
    (dict(alpha=(.9, 2.)), 'exceeds the limits of NegGradPlus here, 0.9 to 1'),
    (dict(bs_forget=(16, 64)), 'bs_forget=None is not a number, so it cannot be searched'),
    (dict(opt=(1, 2)), "opt='sgd' is not a number, so it cannot be searched"),
    (dict(rate=(1, 2)), "no setting 'rate' to search"), ({}, 'NegGradPlus has no settings to search')],
    ids=lambda o: str(o)[:30])
def test_bad_ranges_of_a_search_are_refused(space, words, learn, split):
    with pytest.raises(InputError) as e: tune(learn, split, with_space(NegGradPlus(), **space))
    assert words in str(e.value)

@pytest.mark.parametrize('bad,words', [
    (dict(algorithm=with_space(SalUn(), share=(.5, 2.))), 'exceeds the limits of SalUn here, 0.5 to 1'),
    (dict(algorithm=SCRUB(alpha=0.)), 'alpha=0.0 has no value on the logarithmic scale of the search'),
    (dict(algorithm=NegGradPlus(alpha=1.)), 'alpha=1.0 has no value on the logarithmic scale of the search'),
    (dict(algorithm=NegGradPlus), 'give an instance such as SCRUB()'),
    (dict(algorithm=SeqUnlearn), 'give an instance such as SCRUB(), or a SeqUnlearn of one'),
    (dict(algorithm=SeqUnlearn((SCRUB(), None, SCRUB()))), 'needs one algorithm for all groups'),
    (dict(algorithm=SeqUnlearn(NegGradPlus())), 'A sequence needs scores to form its groups: rank the split first'),
    (dict(algorithm=SeqUnlearn(NegGradPlus(alpha=1.), 1)), 'alpha=1.0 has no value on the logarithmic scale'),
    (dict(algorithm=SeqUnlearn(with_space(SalUn(), share=(.5, 2.)), 1)), 'exceeds the limits of SalUn here, 0.5 to 1'),
    (dict(algorithm=SeqUnlearn(with_space(SCRUB()), 1)), 'SCRUB has no settings to search'),
    (dict(algorithm=SeqUnlearn(NegGradPlus(), ByChance(12), 'shuffled')), 'use smaller batches, algorithm.replace(bs='),
    (dict(split='random:10'), 'split is a str, not a ForgetSplit'), (dict(split=np.arange(3)), 'split is a ndarray'),
    (dict(budget=3), 'budget=3 must be a whole number in [10, inf)'),
    (dict(budget=20.), 'budget=20.0 must be a whole number'),
    (dict(oracles=1), 'oracles=1 must be a whole number in [2, inf)'),
    (dict(seed=-1), 'seed=-1 must be a whole number in [0, 4294967295]'),
    (dict(path='/dev/null'), "'/dev/null' cannot be written")], ids=lambda o: str(o)[:30])
def test_bad_arguments_of_a_search_are_refused(bad, words, learn, split, monkeypatch):
    monkeypatch.delattr('rsu.evaluation.tune.fit_oracles') # they are refused before any work
    with pytest.raises(InputError) as e: tune(learn, **{'split': split, 'algorithm': NegGradPlus(), **bad})
    assert words in str(e.value)

def test_a_setting_with_whole_numbers_in_its_declaration_has_a_whole_range():
    assert _bounds(with_space(NegGradPlus(), lr=(1, 2.)), 'lr') == (1., 2., 'log')
    assert _bounds(with_space(NegGradPlus(lr=1), n_epoch=(1., 4.)), 'n_epoch') == (1, 4, 'whole')

def test_bad_options_of_a_search_are_refused(here, capsys):
    for args, words in [(['--budget', '5'], '--budget 5'), (['--algorithm', 'unsir'], 'None of these')]:
        assert call('tune', *options, *args, '--out', 'out') == 2
        err = capsys.readouterr().err
        assert words in err and err.count('\n') == 1, err

def test_tuned_settings_can_be_read_in_a_new_process(tmp_path):
    code = 'from rsu.evaluation.tune import tuned_settings; assert len(tuned_settings()) > 100'
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, timeout=300)

def test_a_search_has_its_own_default_seed(tmp_path, monkeypatch):
    searches = []
    def search(s, *args):
        searches.append(s)
        return pd.DataFrame(columns=['settings', 'score', 'given', 'nothing', 'retrained'])
    monkeypatch.setattr('rsu.app.pipeline.search', search)
    for args in (['--out', 'a'], ['--seed', '7', '--out', 'a']): assert call('tune', *args) == 0
    assert [o.seed for o in searches] == [1000, 7]
    assert all(f'--seed {searches[0].seed}' in c for c in tuned_settings().command if c.startswith('rsu tune '))

@pytest.mark.parametrize('score, warned', [(.8, True), (.9, False)])
def test_a_search_whose_best_is_worse_than_doing_nothing_says_so(score, warned):
    found = Tuning(pd.DataFrame(dict(ended=['done'])), score=score, given=.7, nothing=.9, retrained=.95)
    assert ('worse than doing nothing' in repr(found)) == warned
    assert ('do not use them' in found.advice) == warned and 'Even retrained' not in found.advice
    found.retrained = .75
    assert ('Even retrained models score 0.750: there are too few samples' in found.advice) == warned

def linear(c_in=1, c_out=10): return nn.Sequential(nn.Flatten(), nn.Linear(64, c_out))

@pytest.fixture(scope='module')
def little():
    "A linear model of 120 digits"
    return Recipe(linear, n_epoch=12, lr=5e-2).fit(digits(n=120), quiet=True)

@pytest.fixture(scope='module')
def ranking(little):
    "Ten of its samples, ranked"
    return Confidence().rank(little, ForgetSplit(little.dls, 'random:10', seed=0))

class Recorded(FineTune):
    "Fine-tuning that records the group of every fit, and is interrupted in one of them"
    space = dict(lr=(1e-2, 1e-1))
    fits, interrupted_at = [], None
    def before_fit(self):
        super().before_fit()
        self.fits.append(self.stage.name)
        if len(self.fits) == Recorded.interrupted_at: raise KeyboardInterrupt

@pytest.fixture
def fits(monkeypatch):
    "The groups of the fits of `Recorded` in the order of the fits"
    monkeypatch.setattr(Recorded, 'fits', [])
    return Recorded.fits

few_runs = dict(budget=10, oracles=2, quiet=True)
ignores_advice = pytest.mark.filterwarnings('ignore::rsu.evaluation.tune.WorseThanNothing')

@ignores_advice
def test_a_shuffled_sequence_has_another_order_in_each_run(little, ranking, fits):
    how = SeqUnlearn(Recorded(bs=16, n_epoch=1), order='shuffled', seed=3)
    best = tune(little, ranking, how, **few_runs)
    orders = np.reshape(fits, (10, 3)).tolist()
    for order, seed in zip(orders, best.tuning.trials.seed):
        assert order == [s.name for s in how.replace(seed=int(seed)).stages(ranking)]
    assert len(np.unique(orders, axis=0)) >= 3
    assert best.replace(algorithm=how.algorithm) == how and best.algorithm.lr in best.tuning.trials.lr.tolist()

@ignores_advice
def test_an_interrupted_search_of_a_sequence_is_continued(little, ranking, fits, here, monkeypatch):
    how = SeqUnlearn(Recorded(bs=16, n_epoch=1), order='ascending')
    def searched(path=None, how=how):
        fits.clear()
        best = tune(little, ranking, how, **few_runs, path=path)
        return best, best.tuning.trials.drop(columns='seconds')
    whole, runs = searched()
    assert fits == ['3', '2', '1']*10
    monkeypatch.setattr(Recorded, 'interrupted_at', 11)
    with pytest.raises(KeyboardInterrupt): searched(here)
    monkeypatch.setattr(Recorded, 'interrupted_at', None)
    resumed, runs_again = searched(here)
    assert len(fits) == 3*7 and resumed == whole and runs_again.equals(runs) # the fourth run is repeated
    assert searched(here)[0] == whole and fits == []
    at_once, _ = searched(here, how.algorithm) # another search in the same folder
    assert fits == ['all']*10 and n_runs(here) == 20 and isinstance(at_once, Recorded)

def test_searches_of_an_algorithm_and_of_its_sequences_have_different_keys(little, ranking):
    def key(how, split=ranking): return _search_key(little, split, how, {}, 2, 0)
    class ByHand(Quantiles): pass
    how, scores = FineTune(bs=8), ranking.scores
    sequences = [SeqUnlearn(how, **o) for o in (
        {}, dict(groups=1), dict(groups=2), dict(groups=Quantiles(2)), dict(groups=ByHand(2)), dict(order='shuffled'),
        dict(pending='retain'), dict(repair=FineTune()), dict(rerank=Confidence), dict(until=.5))]
    keys = [key(how), *map(key, sequences), key(sequences[0], Ranking.from_scores(ranking, -scores))]
    assert len({*keys}) == len(keys) == 12
    # only what determines the groups counts
    plain = ForgetSplit(ranking.dls, ranking.forget)
    assert key(how, plain) == key(how) and key(sequences[1], plain) == key(sequences[1])
    assert key(sequences[0], Ranking.from_scores(plain, 2*scores, 'doubled')) == key(sequences[0])

@ignores_advice
def test_a_run_with_too_few_steps_for_a_group_does_not_end_the_search(little, ranking):
    how = with_space(FineTune(bs=16, n_epoch=1), bs=(16, 128))
    at_once, best = (tune(little, ranking, o, **few_runs) for o in (how, SeqUnlearn(how)))
    assert (at_once.tuning.trials.ended == 'done').all()
    runs = best.tuning.trials
    short = runs.ended == 'too few steps'
    assert short.sum() >= 2 and (short == (runs.bs >= 55)).all() # two batches of 110 retained samples, and three groups
    assert not runs[short][['steps', 'seconds']].any(axis=None) and (runs[short].score == best.tuning.nothing).all()
    assert not short[runs.bs == best.algorithm.bs].any() # not chosen, and not repeated
    assert f'{short.sum()} of the runs had too few steps for one of the groups' in repr(best.tuning)
    with pytest.raises(InputError, match='of group 2: use smaller batches, .*bs=32.* or fewer groups, groups=2'):
        little.unlearn(ranking, SeqUnlearn(FineTune(bs=64, n_epoch=1)))

class Breaks(FineTune):
    "Fine-tuning whose first group diverges"
    space = dict(lr=(1e-2, 1e-1))
    def after_batch(self):
        super().after_batch()
        with torch.no_grad():
            if self.stage.name == '1': self.model[1].weight.fill_(np.nan)

@ignores_advice
def test_a_sequence_in_which_a_stage_diverges_has_diverged(little, ranking):
    found = tune(little, ranking, SeqUnlearn(Breaks(bs=16, n_epoch=1)), **few_runs).tuning
    assert (found.trials.ended == 'diverged').all() and found.diverged == 1
