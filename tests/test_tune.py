"A search that is killed and started again finds what it would have found, and none of its runs is made twice."
import json, os, shutil, signal, subprocess, sys, time

import numpy as np, pytest
from common import call, rsu
from filelock import FileLock
from rsu.algorithms.ascent import NegGradPlus, SalUn
from rsu.algorithms.teacher import SCRUB
from rsu.app.cli import main
from rsu.core.config import InputError
from rsu.evaluation.tune import _bounds, settings_for, tune, tuned_settings

ask = '--data digits --n 300 --forget random:12 --algorithm gradascent --oracles 2 --train-epochs 2 --budget 12 --seed 1000'.split()

def done(out):
    "Runs that the search's file holds, by their score."
    text = (out/'search.jsonl').read_text(encoding='utf-8') if (out/'search.jsonl').exists() else ''
    return sum(json.loads(l).get('values') is not None for l in text.splitlines() if l.endswith('}'))

def found(out):
    "What was found, but for the clock's part."
    return [{k: v for k, v in r.items() if k not in ('seconds', 'command')}
            for r in json.loads((out/'settings.json').read_text(encoding='utf-8'))]

def test_killed_and_taken_up(tmp_path):
    whole = subprocess.run([rsu, 'tune', *ask, '--out', 'whole'], cwd=tmp_path, capture_output=True, text=True,
                           timeout=300, encoding='utf-8')
    assert whole.returncode == 0, whole.stderr
    # the same model and oracles, and a search that is cut short in its runs, when it had been asked for fewer
    for name in ('model.safetensors', 'run.json', 'oracles'):
        copy = shutil.copytree if (tmp_path/'whole'/name).is_dir() else shutil.copy
        (tmp_path/'cut').mkdir(exist_ok=True)
        copy(tmp_path/'whole'/name, tmp_path/'cut'/name)
    run = subprocess.Popen([rsu, 'tune', *ask, '--budget', '10', '--out', 'cut'], cwd=tmp_path,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8')
    limit = time.monotonic()+120
    while done(tmp_path/'cut') < 3:
        assert run.poll() is None and time.monotonic() < limit, run.communicate()[0]
        time.sleep(.002)
    run.kill()
    run.communicate()
    before = done(tmp_path/'cut')
    assert 3 <= before < 9 and not (tmp_path/'cut'/'settings.json').exists()
    with FileLock(tmp_path/'cut'/'settings.lock'): # as a process that searches other algorithms holds it while it writes
        again = subprocess.Popen([rsu, 'tune', *ask, '--out', 'cut'], cwd=tmp_path,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                 env={**os.environ, 'PYTHONUNBUFFERED': '1'}, encoding='utf-8')
        said = next((o for o in again.stdout if 'GradAscent(' in o), '') # behind the progress bar
        time.sleep(1)
        assert said and again.poll() is None and not (tmp_path/'cut'/'settings.json').exists()
    rest = again.communicate(timeout=300)[0]
    assert again.returncode == 0, rest
    assert done(tmp_path/'cut') == 12 and found(tmp_path/'cut') == found(tmp_path/'whole')

def test_the_settings_that_come_with_the_package():
    df = tuned_settings()
    df = df[df.command.str.startswith('rsu tune ')]
    for r in df.itertuples():
        # each command says what its row says, and a seed that no report uses
        assert f'--data {r.data} ' in r.command and f'--forget {r.forget} ' in r.command and '--seed 1000' in r.command
        assert settings_for(r.data, r.network, r.forget, r.settings.name) == r.settings
        assert r.nothing <= 1 and r.retrained <= 1 and r.runs >= 10 and (r.seed, r.forget.startswith('top:')) == (1000, isinstance(r.ranker, str))
        # what is on an edge says so: a value at an end of its range is in one of the two lists, or runs went beyond
        assert all(lo <= getattr(r.settings, k) <= hi for o in (r.edges, r.ends) for k, (lo, hi) in o.items()) and not set(r.edges) & set(r.ends)

# A search of an algorithm that is quick to run, in a script that several processes can run at once.
script = '''
from rsu.all import *
from rsu.evaluation.tune import tune
import sys
dls = digits(n=300)
other = digits(seed=1, n=300).valid
learn = Recipe(small_cnn, n_epoch=2, lr=5e-3).fit(dls, quiet=True)
if 'other' in sys.argv: dls.loaders[1] = other
how = FineTune(bs=64)
how.space = dict(n_epoch=(1,2), lr=(1e-3,1e-2))
best = tune(learn, ForgetSplit(dls, 'random:12', seed=1), how, budget=10, oracles=2, path='search', quiet=True)
print(best, best.tuning.score, len(best.tuning.trials))
'''

def search(cwd, *args):
    return subprocess.Popen([sys.executable, 'search.py', *args], cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding='utf-8')

def told(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.splitlines()

def test_two_at_once_a_damaged_file_and_other_samples(tmp_path):
    (tmp_path/'search.py').write_text(script, encoding='utf-8')
    one, two = [told(p) for p in [search(tmp_path), search(tmp_path)]]
    assert one == two and done(tmp_path/'search') == 10
    # a line that is none is cut off, with what stands behind it, and the search goes on to the same end
    file = tmp_path/'search'/'search.jsonl'
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b''.join(lines[:len(lines)//2]) + lines[len(lines)//2][:9] + b'\0\0\n' + lines[-1])
    again = told(search(tmp_path))
    assert 'is damaged in line' in again[0] and again[1:] == one and done(tmp_path/'search') == 10
    # scores on other validation samples are not those of these
    assert told(search(tmp_path, 'other')) != one and done(tmp_path/'search') == 20

own = """
from rsu.all import *
class Milder(FineTune):
    space = dict(lr=(1e-3,1e-2))
    def rate(self, epoch): return .5
"""

def test_stopped_by_hand_damaged_smaller_and_by_an_algorithm_of_ones_own(here, capsys):
    (here/'mine.py').write_text(own, encoding='utf-8')
    command = [rsu, 'tune', *ask, '--algorithm', 'mine:Milder', '--budget', '40', '--out', 'out']
    heeds = lambda: signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's job in the background is told to pass over it, and so are its children
    run = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           preexec_fn=heeds, encoding='utf-8')
    limit = time.monotonic()+120
    while done(here/'out') < 2:
        assert run.poll() is None and time.monotonic() < limit, run.communicate()
        time.sleep(.002)
    run.send_signal(signal.SIGINT)
    err = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and 'the same command continues' in err and 'Traceback' not in err, err
    before = done(here/'out')
    anew = lambda: subprocess.run([*command, '--budget', '12'], cwd=here, capture_output=True, text=True,
                                  timeout=300, encoding='utf-8')
    again = anew()
    assert again.returncode == 0 and done(here/'out') == 12 > before >= 2, again.stderr
    row, = json.loads((here/'out'/'settings.json').read_text(encoding='utf-8'))
    assert row['settings']['kind'] == 'Milder' and row['runs'] == 12 and row['seed'] == 1000
    # fewer runs do not take the place of more
    assert call(*command[1:], '--budget', '10') == 0
    assert 'keeps what 12 runs found' in capsys.readouterr().out
    assert json.loads((here/'out'/'settings.json').read_text(encoding='utf-8')) == [row]
    # what it found is not what another code would find
    known = done(here/'out')
    (here/'mine.py').write_text(own.replace('.5', '.25'), encoding='utf-8')
    assert anew().returncode == 0 and done(here/'out') == known + 12
    # a file that is none is told of before any work
    (here/'out'/'settings.json').write_text('[{', encoding='utf-8')
    assert call(*command[1:], '--budget', '12') == 2
    told = capsys.readouterr()
    assert 'is damaged' in told.err and told.err.count('\n') == 1 and 'Searching' not in told.out

def test_one_that_fails_does_not_end_the_others(tmp_path):
    (tmp_path/'mine.py').write_text(own + """
class Broken(FineTune):
    space = dict(lr=(1e-3,1e-2))
    def terms(self, epoch): return 1/0
""", encoding='utf-8')
    done = subprocess.run([rsu, 'tune', *ask, '--algorithm', 'mine:Broken,mine:Milder', '--budget', '10',
                           '--out', 'out'],
                          cwd=tmp_path, capture_output=True, text=True, timeout=300, encoding='utf-8')
    assert done.returncode == 2 and 'ZeroDivisionError' in done.stderr and done.stderr.splitlines()[-1].startswith('rsu: The search of mine:Broken failed')
    rows = json.loads((tmp_path/'out'/'settings.json').read_text(encoding='utf-8'))
    assert [r['settings']['kind'] for r in rows] == ['Milder']

def test_settings_that_diverge_are_not_taken():
    from rsu.all import FineTune, ForgetSplit, Recipe, digits, small_cnn
    from rsu.evaluation.tune import tune
    learn = Recipe(small_cnn, n_epoch=6, lr=5e-3).fit(digits(n=300), quiet=True)
    wild = FineTune(bs=16, lr=30.)
    wild.space = dict(lr=(.001, 1000.))
    best = tune(learn, ForgetSplit(learn.dls, 'random:12', seed=1), wild, budget=10, oracles=2, quiet=True)
    runs = best.tuning.trials
    assert runs.ended.iloc[0] == 'diverged' and (runs.ended == 'diverged').sum() >= 2 and (runs.ended == 'done').any()
    # the weights that were put back may score higher than those of a run that went to its end, and yet are not taken
    assert (runs.ended[runs.lr == best.lr] == 'done').all() and best.tuning.diverged == 0 and 'of the runs diverged' in repr(best.tuning)
    assert runs.score[runs.ended == 'diverged'].max() >= best.tuning.score, 'this model tells nothing: choose another'

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
def test_ranges_that_cannot_be_searched(space, words, learn, split):
    with pytest.raises(InputError) as e: tune(learn, split, with_space(NegGradPlus(), **space))
    assert words in str(e.value)

@pytest.mark.parametrize('bad,words', [
    (dict(algorithm=with_space(SalUn(), share=(.5, 2.))), 'exceeds the limits of SalUn here, 0.5 to 1'),
    (dict(algorithm=SCRUB(alpha=0.)), 'alpha=0.0 has no value on the logarithmic scale of the search'),
    (dict(algorithm=NegGradPlus(alpha=1.)), 'alpha=1.0 has no value on the logarithmic scale of the search'),
    (dict(algorithm=NegGradPlus), 'give an instance such as SCRUB()'),
    (dict(split='random:10'), 'split is a str, not a ForgetSplit'), (dict(split=np.arange(3)), 'split is a ndarray'),
    (dict(budget=3), 'budget=3 must be a whole number in [10, inf)'),
    (dict(budget=20.), 'budget=20.0 must be a whole number'),
    (dict(oracles=1), 'oracles=1 must be a whole number in [2, inf)'),
    (dict(seed=-1), 'seed=-1 must be a whole number in [0, 4294967295]'),
    (dict(path='/dev/null'), "'/dev/null' cannot be written")], ids=lambda o: str(o)[:30])
def test_arguments_that_are_refused(bad, words, learn, split):
    with pytest.raises(InputError) as e: tune(learn, **{'split': split, 'algorithm': NegGradPlus(), **bad})
    assert words in str(e.value)

def test_a_setting_with_whole_numbers_in_its_declaration_has_a_whole_range():
    assert _bounds(with_space(NegGradPlus(), lr=(1, 2.)), 'lr') == (1., 2., 'log')
    assert _bounds(with_space(NegGradPlus(lr=1), n_epoch=(1., 4.)), 'n_epoch') == (1, 4, 'whole')

def test_a_search_that_cannot_be(here, capsys):
    for args, says in [(['--budget', '5'], '--budget 5'), (['--algorithm', 'unsir'], 'None of these')]:
        assert call('tune', *ask, *args, '--out', 'out') == 2
        err = capsys.readouterr().err
        assert says in err and err.count('\n') == 1, err

def test_the_settings_are_known_to_a_process_that_knows_no_algorithm(tmp_path):
    subprocess.run([sys.executable, '-c', 'from rsu.evaluation.tune import tuned_settings; assert len(tuned_settings()) > 100'], cwd=tmp_path, check=True, timeout=300)

def test_a_search_has_a_seed_of_its_own(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr('rsu.app.pipeline.search', lambda s, *args: asked.append(s))
    for args in (['tune', '--out', 'a'], ['tune', '--seed', '7', '--out', 'a']): main(args)
    assert [o.seed for o in asked] == [1000, 7]
    assert all(f'--seed {asked[0].seed}' in c for c in tuned_settings().command if c.startswith('rsu tune '))
