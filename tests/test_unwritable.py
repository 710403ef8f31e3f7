"A folder that cannot be written is refused in one sentence before the work whose results it should store."
import numpy as np, pandas as pd, pytest
from common import call, small
from rsu.all import *
from rsu.core.template import write_report
from rsu.core.config import InputError

@pytest.fixture
def risk(split): return Ranking.from_scores(split, np.arange(12.))

how = NegGradPlus(n_epoch=1, bs=16)
work = {
    'bank': lambda learn, risk, path: ReferenceBank.fit(learn, 2, path, quiet=True),
    'oracles': lambda learn, risk, path: fit_oracles(learn, risk, 2, path, quiet=True),
    'stages': lambda learn, risk, path: learn.unlearn(risk, SeqUnlearn(how, 2), path=path, quiet=True),
    'study': lambda learn, risk, path: compare_orders(learn, risk, algorithms=how, path=path, quiet=True),
    'study, with oracles': lambda learn, risk, path: compare_orders(learn, risk, algorithms=how, oracles=[learn]*2,
                                                                    path=path),
    'search': lambda learn, risk, path: tune(learn, risk, how, budget=10, path=path, quiet=True),
    'evaluation': lambda learn, risk, path: evaluate(learn.done, path=path, quiet=True),
    'runs': lambda learn, risk, path: evaluate_runs(learn.done, path=path, quiet=True),
    'report': lambda learn, risk, path: write_report(path)}

@pytest.mark.parametrize('folder', ['file', 'file/folder', 'device', 'device/folder'])
@pytest.mark.parametrize('name', [*work])
def test_an_unwritable_folder_is_refused_before_the_work(name, folder, learn, risk, tmp_path, monkeypatch):
    (tmp_path/'file').touch()
    (tmp_path/'device').symlink_to('/proc/self') # a folder in which not even root can make a file
    learn.done = learn.unlearn(risk, how, quiet=True)
    def start(*args, **kwargs): raise AssertionError('the work started')
    for k in ('rsu.core.recipe.Recipe.fit', 'rsu.algorithms.base.Algorithm.forget', 'rsu.ranking.bank._train_missing',
              'rsu.core.template._execute'):
        monkeypatch.setattr(k, start)
    with pytest.raises(InputError, match=f"The folder '.*{folder}.*' cannot be written .*give another folder"):
        work[name](learn, risk, tmp_path/folder)
    assert (tmp_path/'file').read_bytes() == b''

searched = 'tune --data digits --n 300 --forget random:12 --algorithm neggradplus --budget 10'.split()

@pytest.mark.parametrize('job', [['run', *small], searched], ids=['run', 'tune'])
@pytest.mark.parametrize('part', ['bank', 'oracles'])
def test_an_unwritable_part_of_a_runs_folder_is_refused(job, part, here, monkeypatch, capsys):
    def start(*args, **kwargs): raise AssertionError('the work started')
    monkeypatch.setattr('rsu.core.recipe.Recipe.fit', start)
    (here/'out').mkdir()
    (here/'out'/part).write_bytes(b'mine')
    assert call(*job, '--out', 'out') == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and f"The folder 'out/{part}' cannot be written" in err

def test_complete_results_are_read_from_an_unwritable_folder(learn, risk, tmp_path, monkeypatch):
    ReferenceBank.fit(learn, 2, tmp_path, quiet=True)
    fit_oracles(learn, risk, 2, tmp_path, quiet=True)
    def check(*args): raise AssertionError('nothing needs to be written')
    for k in ('rsu.ranking.bank', 'rsu.evaluation.evaluate'): monkeypatch.setattr(f'{k}.check_writable', check)
    assert len(ReferenceBank.fit(learn, 2, tmp_path, quiet=True)) == 2
    assert len(fit_oracles(learn, risk, 2, tmp_path, quiet=True)) == 2

def test_a_study_makes_its_folder(learn, risk, tmp_path):
    oracles = fit_oracles(learn, risk, 2, quiet=True)
    ask = dict(orders=('descending',), algorithms=how, seeds=range(1), groups=2, oracles=oracles,
               path=tmp_path/'new'/'study', quiet=True)
    study = compare_orders(learn, risk, **ask)
    pd.testing.assert_frame_equal(compare_orders(learn, risk, **ask), study)
    assert len(list((tmp_path/'new'/'study').glob('run-*.parquet'))) == 3
