"The bank of reference models where a notebook cannot look: other processes, kills, collisions, clusters."
import gc, multiprocessing, subprocess, sys, weakref
from concurrent.futures import ProcessPoolExecutor

import numpy as np, pandas as pd, pytest, torch
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
    "A bank that one process made, one reference after the other. Nobody writes into it."
    return ReferenceBank.fit(learner(), n, tmp_path_factory.mktemp('bank'), quiet=True)

def assert_same_bank(folder, bank):
    assert shards(folder) == shards(bank.path)
    assert sorted(p.name for p in folder.iterdir() if p.suffix not in ('.safetensors', '.json')) == []

def test_the_cores_of_this_machine(bank, tmp_path, monkeypatch):
    import loky
    monkeypatch.setattr(rsu.core.parallel, '_worth', 0)
    monkeypatch.setattr(loky, 'cpu_count', lambda: 2)
    ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert_same_bank(tmp_path, bank)

def test_a_network_that_another_process_cannot_import(tmp_path, monkeypatch):
    # as in a notebook: the network is defined where nobody else finds it
    import loky
    monkeypatch.setattr(loky, 'cpu_count', lambda: 2)
    net = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    net.__qualname__ = 'net'
    learn = Recipe(net, n_epoch=1).learner(digits(n=200))
    for worth in (0, 1e9):
        monkeypatch.setattr(rsu.core.parallel, '_worth', worth)
        ReferenceBank.fit(learn, 4, tmp_path/str(worth), quiet=True)
    assert shards(tmp_path/'0') == shards(tmp_path/str(1e9))

def test_an_executor_of_processes(bank, tmp_path):
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool: ReferenceBank.fit(learner(), n, tmp_path, executor=pool, quiet=True)
    assert_same_bank(tmp_path, bank)

def test_dask(bank, tmp_path):
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path/'dask') as cluster, distributed.Client(cluster) as client:
        with client.get_executor() as workers: ReferenceBank.fit(learner(), n, tmp_path/'bank', executor=workers, quiet=True)
    assert_same_bank(tmp_path/'bank', bank)

def test_submitit(bank, tmp_path):
    submitit = pytest.importorskip('submitit')
    executor = submitit.LocalExecutor(folder=tmp_path/'jobs')
    executor.update_parameters(timeout_min=5)
    ReferenceBank.fit(learner(), 2, tmp_path/'bank', executor=executor, quiet=True)
    assert {k: v for k, v in shards(bank.path).items() if k in shards(tmp_path/'bank')} == shards(tmp_path/'bank')

def test_a_job_that_fails_loses_nothing(bank, tmp_path, monkeypatch):
    # the third reference cannot be trained: what was done stays, the error is told, and the next call takes it up
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

script = """
import sys, rsu.core.parallel, rsu.ranking.bank
from pathlib import Path
write = rsu.ranking.bank.write_shard
def told(path, tensors, **facts):
    write(path, tensors, **facts)
    if path.name.startswith('reference'): print(path.name, flush=True)
rsu.ranking.bank.write_shard = told
rsu.core.parallel._worth = float(sys.argv[2])
from rsu.core.data import Samples, loaders
from rsu.core.datasets import digits
from rsu.core.split import ForgetSplit
from rsu.algorithms.exact import Retrain
from rsu.erasure.ledger import Ledger
from rsu.ranking.rankers import LiRA
from rsu.core.recipe import Recipe, mlp, small_cnn
print('ready', flush=True)
rsu.ranking.bank.ReferenceBank.fit(Recipe(small_cnn, n_epoch=1, lr=5e-3).learner(digits(n=200)), 6, Path(sys.argv[1]), quiet=True)
print('done', flush=True)
"""

def begin(folder, worth=1e9):
    return subprocess.Popen([sys.executable, '-c', script, folder, str(worth)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8')

def test_two_processes_on_one_bank(bank, tmp_path):
    both = [begin(tmp_path) for _ in range(2)]
    said = [p.communicate(timeout=120)[0].split() for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    trained = [o for s in said for o in s if o.startswith('reference')]
    assert sorted(trained) == sorted(k for k in shards(bank.path) if k.startswith('reference'))  # each once
    assert_same_bank(tmp_path, bank)

@pytest.mark.parametrize('worth', [1e9, 0], ids=['alone', 'by all cores'])
def test_a_second_process_takes_what_the_first_has_not_begun(worth, bank, tmp_path, monkeypatch):
    # as on two machines with a folder in common: whoever comes later does not wait until all is done
    import loky
    monkeypatch.setattr(rsu.core.parallel, '_worth', worth)
    monkeypatch.setattr(loky, 'cpu_count', lambda: 2)
    write, seen = rsu.ranking.bank.write_shard, []
    def told(path, tensors, **facts):
        write(path, tensors, **facts)
        if path.name.startswith('reference'): seen.append(len(list(tmp_path.glob('*.lock'))))
    monkeypatch.setattr(rsu.ranking.bank, 'write_shard', told)
    ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert len(seen) == n and max(seen) <= (1 if worth else 4) < n
    assert_same_bank(tmp_path, bank)

@pytest.mark.parametrize('worth', [1e9, 0], ids=['alone', 'by all cores'])
def test_killed_and_started_again(worth, bank, tmp_path):
    run, seen = begin(tmp_path, worth), []
    for line in run.stdout:
        seen.append(line.strip())
        if len([o for o in seen if o.startswith('reference')]) == 2: break
    run.kill()
    run.communicate(timeout=30)  # its workers hold the pipe: they end with it
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob('reference-*.safetensors')}
    assert 2 <= len(kept) < n, seen
    (tmp_path/'reference-0-0005.safetensors.123.part').write_bytes(b'half a file')
    ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert {k: (tmp_path/k).stat().st_mtime_ns for k in kept} == kept
    assert shards(tmp_path) == shards(bank.path) and not list(tmp_path.glob('*.part'))

def test_damage_is_named(bank, tmp_path, capsys):
    for k, v in shards(bank.path).items(): (tmp_path/k).write_bytes(v)
    (tmp_path/'bank.json').write_bytes((bank.path/'bank.json').read_bytes())
    (tmp_path/'reference-0-0004.safetensors').write_bytes(b'')
    assert len(ReferenceBank.open(tmp_path)) == n-1
    assert "reference-0-0004.safetensors' is damaged or was not written by rsu (it has no checksum) and is left out" in capsys.readouterr().out
    ReferenceBank.fit(learner(), n, tmp_path, quiet=True)
    assert "reference-0-0004.safetensors' is damaged or was not written by rsu (it has no checksum): it is trained again" in capsys.readouterr().out
    assert_same_bank(tmp_path, bank)

def test_one_shard_at_a_time(bank, monkeypatch):
    # what a bank larger than memory needs: a shard is let go before the next one is read
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

def test_size_on_disk(tmp_path):
    # 64 references of 60,000 samples: margins, correctness and membership in 9 MB
    from rsu.ranking.bank import _pack_bits, _stored_outputs
    y = torch.zeros(60_000, dtype=torch.int64)
    for k in range(64): write_shard(tmp_path/f'{k}.safetensors', dict(members=_pack_bits(y == 1), **_stored_outputs(torch.zeros(60_000, 2), y)), seed=0, reference=k, device='cpu')
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 9e6

def test_recipes_that_are_functions_are_told_apart_by_their_source(tmp_path):
    def first(dls): return Recipe(small_cnn, n_epoch=1, lr=5e-3).fit(dls, quiet=True)
    def second(dls): return Recipe(small_cnn, n_epoch=1, lr=1e-3).fit(dls, quiet=True)
    second.__name__ = second.__qualname__ = 'first'
    learn = learner()
    ReferenceBank.fit(learn, 2, tmp_path, recipe=first, quiet=True)
    with pytest.raises(InputError, match='differs in recipe'): ReferenceBank.fit(learn, 2, tmp_path, recipe=second, quiet=True)

def test_rows_that_were_deleted_are_never_matched_to_other_rows(tmp_path):
    x, y = torch.randn(62, 4, generator=torch.Generator().manual_seed(0)), torch.arange(62) % 2
    held = Samples(x[:20], y[:20])
    who = np.array([f'patient-{i//2}' for i in range(62)])
    def learner_on(at):
        frame = pd.DataFrame({'person': who[at]})
        return Recipe(mlp, n_epoch=1).learner(loaders(Samples(x[at], y[at], frame=frame), held, held))
    first = learner_on(range(60))
    bank = ReferenceBank.fit(first, 4, tmp_path/'bank', quiet=True)
    new = first.unlearn_stream([['patient-0']], Retrain(), Ledger(tmp_path/'out', by='person'), quiet=True)
    rank = lambda learn, bank: LiRA(bank).rank(learn, ForgetSplit(learn.dls, [3, 4]))
    rank(new, bank) # the same rows, of which the learner draws fewer
    fewer, shifted = learner_on(range(2, 60)), learner_on(range(2, 62)) # the latter with the same labels
    for learn in (fewer, shifted): learn.model.load_state_dict(new.model.state_dict())
    for learn, says in [(fewer, 'was fitted to 60 training samples and the learner has 58'),
                        (shifted, 'the same labels and other samples, so its columns are not those of this one')]:
        for kept in (bank, ReferenceBank.open(tmp_path/'bank')):
            with pytest.raises(InputError, match=f'{says}.*remove this bank .*and fit another'): rank(learn, kept)
        more = dict(ledger=Ledger(tmp_path/'out', by='person'), quiet=True)
        with pytest.raises(InputError, match=says): learn.unlearn_stream([['patient-5']], Retrain(), bank=bank, **more)
    assert len(more['ledger']) == 1
    assert len(fewer.unlearn_stream([['patient-5']], Retrain(), **more).ledger) == 2 # weights and column need no rows
    another = ReferenceBank.fit(fewer, 4, tmp_path/'another', quiet=True) # the remedy
    assert len(rank(fewer, another).scores) == 2

def test_a_ledger_by_position_refuses_data_of_which_rows_were_deleted(tmp_path):
    dls, ledger = digits(n=60), Ledger(tmp_path/'out')
    ledger.add(dls, [3])
    with pytest.raises(InputError, match='is not the one that this ledger.*or name samples by a column that stays'):
        ledger.forgotten(digits(n=58))
