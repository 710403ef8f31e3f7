"The bank of reference models in several processes, after kills and damage, and on clusters."
import gc, multiprocessing, weakref
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np, pandas as pd, psutil, pytest, torch
from common import ended, forked, save_half_bright_pictures, state, wait_until
from fastai.vision.data import ImageDataLoaders
from rsu.core.data import Samples, loaders
from rsu.core.datasets import digits
from rsu.core.split import ForgetSplit
from rsu.algorithms.exact import Retrain
from rsu.erasure.ledger import Ledger
from rsu.ranking.rankers import LiRA
from rsu.core.recipe import Recipe, mlp, small_cnn
from rsu.core.store import read_shard, write_shard
from rsu.ranking.bank import ReferenceBank
from rsu.core.config import InputError
import rsu.core.parallel, rsu.erasure.stream, rsu.ranking.bank

n = 6

def learner(n_epoch=1): return Recipe(small_cnn, n_epoch=n_epoch, lr=5e-3).learner(digits(n=200))

def shards(folder): return {p.name: p.read_bytes() for p in folder.glob('*.safetensors')}

@pytest.fixture(scope='module')
def bank(tmp_path_factory):
    "A bank that one process made, one reference after the other. No test may write into it."
    return ReferenceBank.fit(learner(), n, tmp_path_factory.mktemp('bank'), quiet=True)

def assert_same_bank(folder, bank):
    assert shards(folder) == shards(bank.path)
    assert sorted(p.name for p in folder.iterdir() if p.suffix not in ('.safetensors', '.json')) == []

def test_a_bank_fitted_by_all_cores_is_the_same(bank, tmp_path, monkeypatch):
    import loky
    monkeypatch.setattr(rsu.core.parallel, '_min_seconds', 0)
    monkeypatch.setattr(loky, 'cpu_count', lambda: 2)
    ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert_same_bank(tmp_path, bank)

def test_a_network_that_other_processes_cannot_import_works(tmp_path, monkeypatch):
    # as a network that is defined in a notebook
    import loky
    monkeypatch.setattr(loky, 'cpu_count', lambda: 2)
    def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    net.__qualname__ = 'net'
    learn = Recipe(net, n_epoch=1).learner(digits(n=200))
    for worth in (0, 1e9):
        monkeypatch.setattr(rsu.core.parallel, '_min_seconds', worth)
        ReferenceBank.fit(learn, 4, tmp_path/str(worth), quiet=True)
    assert shards(tmp_path/'0') == shards(tmp_path/str(1e9))

def test_a_bank_fitted_by_an_executor_is_the_same(bank, tmp_path):
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        ReferenceBank.fit(learner(), n, tmp_path, executor=pool, quiet=True)
    assert_same_bank(tmp_path, bank)

def test_a_bank_fitted_by_dask_is_the_same(bank, tmp_path):
    distributed = pytest.importorskip('distributed')
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                                       local_directory=tmp_path/'dask')
    with cluster, distributed.Client(cluster) as client, client.get_executor() as workers:
        ReferenceBank.fit(learner(), n, tmp_path/'bank', executor=workers, quiet=True)
    assert_same_bank(tmp_path/'bank', bank)

def test_a_bank_fitted_by_submitit_is_the_same(bank, tmp_path):
    submitit = pytest.importorskip('submitit')
    executor = submitit.LocalExecutor(folder=tmp_path/'jobs')
    executor.update_parameters(timeout_min=5)
    ReferenceBank.fit(learner(), 2, tmp_path/'bank', executor=executor, quiet=True)
    assert {k: v for k, v in shards(bank.path).items() if k in shards(tmp_path/'bank')} == shards(tmp_path/'bank')

def test_a_job_that_fails_loses_nothing(bank, tmp_path, monkeypatch):
    # the third reference cannot be trained: the error is raised, finished references stay, the next call continues
    work = rsu.ranking.bank._ReferenceJob.__call__
    def failing(self, ks):
        if 2 in ks: raise RuntimeError('out of memory')
        return work(self, ks)
    monkeypatch.setattr(rsu.ranking.bank._ReferenceJob, '__call__', failing)
    with pytest.raises(RuntimeError, match='out of memory'): ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert len(list(tmp_path.glob('reference-*.safetensors'))) == 2
    monkeypatch.undo()
    ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert_same_bank(tmp_path, bank)

def test_the_number_of_threads_changes_no_bit(bank, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try: ReferenceBank.fit(learner(), 2, tmp_path, quiet=True)
    finally: torch.set_num_threads(before)
    assert all(shards(bank.path)[k] == v for k, v in shards(tmp_path).items())

def fit_and_print(folder, worth):
    "Fit the bank, and print the name of each reference that this process has written"
    write = rsu.ranking.bank.write_shard
    def write_and_print(path, tensors, **facts):
        write(path, tensors, **facts)
        if path.name.startswith('reference'): print(path.name)
    rsu.ranking.bank.write_shard = write_and_print
    rsu.core.parallel._min_seconds = worth
    ReferenceBank.fit(learner(), n, folder, quiet=True)

def begin(folder, worth=1e9, log='log.txt'):
    return forked(fit_and_print, folder, worth, cwd=folder.parent, log=folder.parent/log)

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'bank').mkdir()
    return tmp_path/'bank'

def test_two_processes_share_the_work_on_a_bank(bank, folder):
    both = [begin(folder, log=f'{i}.txt') for i in range(2)]
    assert [ended(o) for o in both] == [0, 0]
    trained = [o for i in range(2) for o in (folder.parent/f'{i}.txt').read_text(encoding='utf-8').split()]
    assert sorted(trained) == sorted(k for k in shards(bank.path) if k.startswith('reference')) # each once
    assert_same_bank(folder, bank)

@pytest.mark.parametrize('worth', [1e9, 0], ids=['alone', 'by all cores'])
def test_a_process_locks_only_the_references_that_it_trains(worth, bank, tmp_path, monkeypatch):
    # as on two machines with a common folder: the later one does not wait until the first has finished
    import loky
    monkeypatch.setattr(rsu.core.parallel, '_min_seconds', worth)
    monkeypatch.setattr(loky, 'cpu_count', lambda: 2)
    write, n_locks = rsu.ranking.bank.write_shard, []
    def write_and_count(path, tensors, **facts):
        write(path, tensors, **facts)
        if path.name.startswith('reference'): n_locks.append(len(list(tmp_path.glob('*.lock'))))
    monkeypatch.setattr(rsu.ranking.bank, 'write_shard', write_and_count)
    ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert len(n_locks) == n and max(n_locks) <= (1 if worth else 4) < n
    assert_same_bank(tmp_path, bank)

@pytest.mark.parametrize('worth', [1e9, 0], ids=['alone', 'by all cores'])
def test_a_killed_fit_continues(worth, bank, folder):
    run = begin(folder, worth)
    wait_until(lambda: len(list(folder.glob('reference-*.safetensors'))) >= 2, run)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.join()
    psutil.wait_procs(workers, timeout=60) # they end by themselves
    finished = {p.name: p.stat().st_mtime_ns for p in folder.glob('reference-*.safetensors')}
    assert 2 <= len(finished) < n
    (folder/'reference-0-0005.safetensors.123.part').write_bytes(b'half a file')
    ReferenceBank.fit(learner(), n, folder, quiet=True)
    assert {k: (folder/k).stat().st_mtime_ns for k in finished} == finished
    assert shards(folder) == shards(bank.path) and not list(folder.glob('*.part'))

def test_a_damaged_reference_is_reported_and_trained_again(bank, tmp_path, capsys):
    for k, v in shards(bank.path).items(): (tmp_path/k).write_bytes(v)
    (tmp_path/'bank.json').write_bytes((bank.path/'bank.json').read_bytes())
    (tmp_path/'reference-0-0004.safetensors').write_bytes(b'')
    assert len(ReferenceBank.open(tmp_path)) == n-1
    damaged = "reference-0-0004.safetensors' is damaged or was not written by rsu (it has no checksum)"
    assert f'{damaged} and is left out' in capsys.readouterr().out
    ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert f'{damaged}: it is trained again' in capsys.readouterr().out
    assert_same_bank(tmp_path, bank)

def test_shards_are_read_one_at_a_time(bank, monkeypatch):
    # for banks larger than memory: a shard is freed before the next one is read
    alive, most = weakref.WeakSet(), [0]
    def counted(path, **expected):
        tensors, facts = read_shard(path, **expected)
        alive.add(tensors['phi'])
        gc.collect()
        most[0] = max(most[0], len(alive))
        return tensors, facts
    monkeypatch.setattr(rsu.ranking.bank, 'read_shard', counted)
    part = bank.at(np.array([3, 1]))
    assert most[0] <= 2 and torch.equal(part.phi, bank.phi[:,[3,1]])

def test_a_large_bank_is_small_on_disk(tmp_path):
    # 64 references of 60,000 samples: margins, correctness and membership in 9 MB
    from rsu.ranking.bank import _pack_bits, _stored_outputs
    y = torch.zeros(60_000, dtype=torch.int64)
    tensors = dict(members=_pack_bits(y == 1), **_stored_outputs(torch.zeros(60_000, 2), y))
    for k in range(64): write_shard(tmp_path/f'{k}.safetensors', tensors, seed=0, reference=k, device='cpu')
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 9e6

def test_function_recipes_are_distinguished_by_their_source(tmp_path):
    def first(dls): return Recipe(small_cnn, n_epoch=1, lr=5e-3).fit(dls, quiet=True)
    def second(dls): return Recipe(small_cnn, n_epoch=1, lr=1e-3).fit(dls, quiet=True)
    second.__name__ = second.__qualname__ = 'first'
    learn = learner()
    ReferenceBank.fit(learn, 2, tmp_path, recipe=first, quiet=True)
    with pytest.raises(InputError, match='differs in recipe'):
        ReferenceBank.fit(learn, 2, tmp_path, recipe=second, quiet=True)

def test_a_bank_is_refused_for_data_with_deleted_rows(tmp_path):
    x, y = torch.randn(62, 4, generator=torch.Generator().manual_seed(0)), torch.arange(62) % 2
    other = Samples(x[:20], y[:20])
    who = np.array([f'patient-{i//2}' for i in range(62)])
    def learner_on(at):
        frame = pd.DataFrame({'person': who[at]})
        return Recipe(mlp, n_epoch=1).learner(loaders(Samples(x[at], y[at], frame=frame), other, other))
    first = learner_on(range(60))
    bank = ReferenceBank.fit(first, 4, tmp_path/'bank', quiet=True)
    new = first.unlearn_stream([['patient-0']], Retrain(), Ledger(tmp_path/'out', by='person'), quiet=True)
    def rank(learn, bank): return LiRA(bank).rank(learn, ForgetSplit(learn.dls, [3, 4]))
    rank(new, bank) # the same rows, of which the learner draws fewer
    fewer, shifted = learner_on(range(2, 60)), learner_on(range(2, 62)) # the latter with the same labels
    for learn in (fewer, shifted): learn.model.load_state_dict(new.model.state_dict())
    for learn, words in [(fewer, 'was fitted to 60 training samples and the learner has 58'),
                        (shifted, 'the same labels and other samples, so its columns are not those of this one')]:
        for stored in (bank, ReferenceBank.open(tmp_path/'bank')):
            with pytest.raises(InputError, match=f'{words}.*remove this bank .*and fit another'): rank(learn, stored)
        more = dict(ledger=Ledger(tmp_path/'out', by='person'), quiet=True)
        with pytest.raises(InputError, match=words):
            learn.unlearn_stream([['patient-5']], Retrain(), bank=bank, **more)
    assert len(more['ledger']) == 1
    assert len(fewer.unlearn_stream([['patient-5']], Retrain(), **more).ledger) == 2 # weights and column need no rows
    another = ReferenceBank.fit(fewer, 4, tmp_path/'another', quiet=True) # the remedy
    assert len(rank(fewer, another).scores) == 2

def test_a_ledger_by_position_refuses_data_with_deleted_rows(tmp_path):
    dls, ledger = digits(n=60), Ledger(tmp_path/'out')
    ledger.add(dls, [3])
    with pytest.raises(InputError, match='is not the one that this ledger.*or name samples by a column that stays'):
        ledger.forgotten(digits(n=58))

def test_a_bank_without_a_path_is_stored_in_the_current_folder_and_not_among_the_pictures(here, capsys, monkeypatch):
    save_half_bright_pictures(here/'pictures', 10, np.random.default_rng(0))
    dls = ImageDataLoaders.from_folder(here/'pictures', valid_pct=.3, seed=0, bs=4)
    learn, before = Recipe(small_cnn, n_epoch=1, bs=4).learner(dls), state(here/'pictures')
    assert Path(learn.path) == here/'pictures'
    banks = [ReferenceBank.fit(learn, n=2, quiet=True) for _ in range(2)]
    assert banks[0].path == banks[1].path and banks[0].path.parent == Path('bank') and (here/'bank').is_dir()
    assert capsys.readouterr().out == "The reference models are stored in 'bank': path= names another folder.\n"
    monkeypatch.chdir(here/'pictures'/'left')
    bank = ReferenceBank.fit(learn, n=2, quiet=True)
    assert bank.path.parent == here/'pictures-bank' and str(here/'pictures-bank') in capsys.readouterr().out
    assert state(here/'pictures') == before

def test_a_log_states_the_time_of_the_other_references_after_the_first(tmp_path, monkeypatch, capsys):
    now = [0.]
    def write(file, *args, **kwargs):
        now[0] += 40*file.name.startswith('reference') # as if its training had taken so long
        return write_shard(file, *args, **kwargs)
    learn = Recipe(small_cnn, n_epoch=1).fit(digits(n=100), quiet=True)
    monkeypatch.setattr('rsu.core.recipe.perf_counter', lambda: now[0])
    monkeypatch.setattr(rsu.ranking.bank, 'write_shard', write)
    ReferenceBank.fit(learn, n=4, path=tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        'Reference models to train: 4',
        'Reference models to train: the first took 40 s; the other 3 take about 2 minutes, or less on several cores',
        'Reference models to train: 3 of 4 done, about 40 s left']
