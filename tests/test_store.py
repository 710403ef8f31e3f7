"Stored files are checked: swapped, changed and outdated ones are noticed, and a full disk leaves the old file."
import errno, os, shutil

import numpy as np, pandas as pd, pytest, torch
from common import small
from rsu.all import *
from rsu.core.config import InputError
from rsu.core.store import (DamagedFile, WrongFile, key_of, read_json, read_shard, read_table, write_json, write_shard,
                            write_table)

def swap(a, b):
    one, other = a.read_bytes(), b.read_bytes()
    assert one != other
    a.write_bytes(other)
    b.write_bytes(one)

def test_every_changed_byte_of_a_shard_is_noticed(tmp_path):
    file = tmp_path/'a.safetensors'
    tensors = dict(x=torch.arange(3.), name=torch.ones(2, dtype=torch.bool))
    write_shard(file, tensors, kind='reference', key='k', index=1, seed=2)
    raw = file.read_bytes()
    for i in range(len(raw)):
        for change in (1, 2, 32, 128):
            file.write_bytes(raw[:i] + bytes([raw[i] ^ change]) + raw[i+1:])
            with pytest.raises(DamagedFile): read_shard(file)
    for other in (b'', raw[:-1], raw[1:], raw + b' ', b'{}'):
        file.write_bytes(other)
        with pytest.raises(DamagedFile): read_shard(file)

def test_swapped_references_are_trained_again(learn, tmp_path, capsys):
    bank = ReferenceBank.fit(learn, 4, tmp_path, quiet=True)
    before = [f.read_bytes() for f in bank.shards]
    swap(*bank.shards[:2])
    with pytest.raises(WrongFile, match=r'differs in index \(1 there, 0 here\)') as e: bank.phi
    assert e.value.differences == {'index': (1, 0)}
    assert len(ReferenceBank.open(tmp_path)) == 2
    assert capsys.readouterr().out.count('and is left out') == 2
    ReferenceBank.fit(learn, 4, tmp_path, quiet=True)
    assert capsys.readouterr().out.count('it is trained again') == 2
    assert [f.read_bytes() for f in bank.shards] == before

def test_a_reference_of_another_recipe_or_seed_is_not_used(learn, tmp_path):
    other = Recipe(small_cnn, n_epoch=1, lr=1e-3).learner(learn.dls)
    mine, theirs, seeded = (ReferenceBank.fit(o, 2, tmp_path/name, seed, quiet=True)
                            for name, o, seed in (('a', learn, 0), ('b', other, 0), ('c', learn, 1)))
    for bank in (theirs, seeded):
        shutil.copy(bank.shards[0], mine.shards[0])
        with pytest.raises(WrongFile, match='differs in key'): mine.phi
    shutil.copy(theirs.path/'labels.safetensors', mine.path/'labels.safetensors')
    with pytest.raises(WrongFile, match='differs in key'): mine.of(learn.dls)

def test_swapped_oracles_are_trained_again(learn, split, tmp_path, capsys):
    from rsu.evaluation.evaluate import fit_oracles
    states = [o.model.state_dict() for o in fit_oracles(learn, split, 2, tmp_path, quiet=True)]
    files = sorted(tmp_path.glob('oracle-*'))
    before = [f.read_bytes() for f in files]
    swap(*files)
    again = fit_oracles(learn, split, 2, tmp_path, quiet=True)
    assert capsys.readouterr().out.count('it is trained again') == 2
    for one, two in zip(states, again): assert all(torch.equal(v, two.model.state_dict()[k]) for k, v in one.items())
    # an oracle of another request under this name
    fit_oracles(learn, ForgetSplit(learn.dls, 'random:12', seed=1), 1, tmp_path/'other', quiet=True)
    shutil.copy(next((tmp_path/'other').glob('oracle-*')), files[0])
    fit_oracles(learn, split, 1, tmp_path, quiet=True)
    assert 'differs in key' in capsys.readouterr().out

def test_a_stored_oracle_has_the_record_of_its_training(learn, split, tmp_path):
    from rsu.evaluation.evaluate import fit_oracles
    (made,), (read,) = (fit_oracles(learn, split, 1, tmp_path, quiet=True) for _ in range(2))
    assert type(read.unlearning.how) is Retrain and read.unlearning.how == made.unlearning.how
    assert read.unlearning.stages.to_dict() == made.unlearning.stages.to_dict()
    assert read.unlearning.before == made.unlearning.before and read.unlearning.cost == made.unlearning.cost

def test_the_message_on_stages_names_the_fact_that_differs(learn, split, tmp_path):
    how = SeqUnlearn(NegGradPlus(n_epoch=1, bs=16), 2)
    risk = Ranking.from_scores(split, np.arange(12.))
    learn.unlearn(risk, how, path=tmp_path, quiet=True)
    with pytest.raises(WrongFile, match=r'differs in seed \(0 there, 1 here\)') as e:
        learn.unlearn(risk, how, seed=1, path=tmp_path, quiet=True)
    assert e.value.differences == {'seed': (0, 1)}

def full(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

writes = dict(shard=lambda file: write_shard(file, dict(a=torch.ones(9))),
              note=lambda file: write_json(file, dict(a=1), 'note'),
              table=lambda file: write_table(file, pd.DataFrame(dict(a=[1])), 'rows'))

@pytest.mark.parametrize('name', [*writes])
@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no full device here')
def test_a_full_disk_is_reported_and_leaves_the_old_file(name, tmp_path, monkeypatch):
    file = tmp_path/'a'
    writes[name](file)
    before = file.read_bytes()
    opened = open
    monkeypatch.setattr('builtins.open', lambda path, *args, **kwargs: opened(
        '/dev/full' if str(path).endswith('.part') else path, *args, **kwargs))
    with pytest.raises(InputError, match=r"a' cannot be written \(No space left on device\): make room") as e:
        writes[name](file)
    monkeypatch.undo()
    assert '\n' not in str(e.value) and file.read_bytes() == before and [*tmp_path.iterdir()] == [file]

def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path/'a').mkdir()
    for read in (read_shard, read_json, read_table):
        with pytest.raises(DamagedFile, match='Is a directory'): read(tmp_path/'a')
    for write in writes.values():
        with pytest.raises(InputError, match=r'cannot be written \(Is a directory\)'): write(tmp_path/'a')
    assert [o.name for o in tmp_path.iterdir()] == ['a']

def test_a_key_depends_on_the_values_of_its_facts():
    arrays = [np.arange(4), np.arange(4.), np.arange(4).reshape(2, 2), np.arange(5)]
    assert len({key_of(a=o) for o in arrays}) == 4
    assert key_of(a=np.arange(8)[::2]) == key_of(a=np.array([0, 2, 4, 6]))
    assert key_of(a=dict(x=1, y=[2])) == key_of(a=dict(y=(2,), x=1)) != key_of(a=dict(x=1, y=2))
    assert key_of(a=np.float64(.5), b=None) == key_of(b=None, a=.5) != key_of(a=.5)
    for odd in (object(), np.array([object()]), {1, 2}):
        with pytest.raises(InputError, match='cannot be part of a key'): key_of(a=odd)

@pytest.mark.parametrize('name', ['ranking.parquet', 'table.parquet', 'unlearned.safetensors', 'model.safetensors'])
def test_a_changed_file_of_a_finished_run_is_noticed(name, whole, here, no_report, capsys):
    shutil.copytree(whole.out, here/'out')
    raw = (here/'out'/name).read_bytes()
    (here/'out'/name).write_bytes(raw[:len(raw)//2] + bytes([raw[len(raw)//2] ^ 1]) + raw[len(raw)//2+1:])
    assert no_report(*small, '--out', 'out') == 0
    assert f"out/{name}' is damaged (its checksum differs)" in capsys.readouterr().out
