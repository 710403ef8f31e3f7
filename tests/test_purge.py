"A purge is killed and the user moves files before it is repeated: the second purge reports what really happened."
import pytest
import rsu.erasure.ledger
from rsu.erasure.ledger import Ledger
from common import people

def copy_of(kind, folder):
    "A file or folder as if made from the samples."
    path = folder/'models'/kind
    files = [path] if kind == 'weights' else [path/o for o in ('bank.json', 'labels.safetensors')]
    if kind == 'cache': files = [path/'scores.csv', path/'more'/'scores.csv']
    for o in files:
        o.parent.mkdir(parents=True, exist_ok=True)
        o.write_text(f'{kind} {o.name}', encoding='utf-8')
    return path

def killed_at(step, ledger, monkeypatch):
    "A purge that is killed before its `step`th record, move or removal; returns how many of these it started."
    started = [0]
    def dying(f):
        def run(*args, **kwargs):
            started[0] += 1
            if started[0] == step: raise KeyboardInterrupt
            return f(*args, **kwargs)
        return run
    with monkeypatch.context() as m:
        for name in ('_move', '_remove'): m.setattr(rsu.erasure.ledger, name, dying(vars(rsu.erasure.ledger)[name]))
        m.setattr(Ledger, '_mark_copy', dying(Ledger._mark_copy))
        try: ledger.purge()
        except KeyboardInterrupt: pass
    return started[0]

@pytest.fixture(params=['weights', 'bank', 'cache'])
def noted(request, tmp_path):
    "A ledger with an entry, and a copy that was made before it."
    ledger, path = Ledger(tmp_path/'ledger', by='person'), copy_of(request.param, tmp_path)
    ledger.note(path, request.param)
    ledger.add(people(['a', 'b', 'c']), [0])
    return ledger, path

steps = range(1, 6) # record the new name, move, record the move, remove, record the removal

def test_a_purge_has_five_steps(noted, monkeypatch): assert killed_at(9, noted[0], monkeypatch) == len(steps)

@pytest.mark.parametrize('step', steps)
def test_a_killed_purge_can_be_repeated(step, noted, monkeypatch):
    ledger, path = noted
    killed_at(step, ledger, monkeypatch)
    assert ledger.purge().state.tolist() == ['removed'] and not list(path.parent.iterdir())
    assert len(ledger.purge()) == 0

@pytest.mark.parametrize('step', steps)
def test_a_file_moved_after_a_kill_is_not_reported_as_removed(step, noted, monkeypatch):
    ledger, path = noted
    killed_at(step, ledger, monkeypatch)
    away = path.with_name('away')
    if path.exists(): path.rename(away)
    assert ledger.purge().state.tolist() == ['not found there' if away.exists() else 'removed']
    assert away.exists() == (step <= 2) # the steps before the move
    if away.exists():
        away.rename(path)
        assert ledger.purge().state.tolist() == ['removed']
    assert not list(path.parent.iterdir())

@pytest.mark.parametrize('step', steps)
def test_a_file_in_a_moved_folder_is_not_reported_as_removed(step, noted, monkeypatch):
    ledger, path = noted
    killed_at(step, ledger, monkeypatch)
    path.parent.rename(path.parent.with_name('elsewhere'))
    assert ledger.purge().state.tolist() == ['not found there']
    path.parent.with_name('elsewhere').rename(path.parent)
    assert ledger.purge().state.tolist() == ['removed'] and not list(path.parent.iterdir())

@pytest.mark.parametrize('noted', ['bank'], indirect=True)
def test_a_bank_moved_in_part_is_not_reported_as_removed(noted, monkeypatch):
    ledger, path = noted
    killed_at(2, ledger, monkeypatch)
    aside = rsu.erasure.ledger._aside(ledger._read()['made'][0])
    aside.mkdir()
    (path/'labels.safetensors').rename(aside/'labels.safetensors')
    path.rename(path.with_name('away'))
    assert ledger.purge().state.tolist() == ['not found there'] and (aside/'labels.safetensors').exists()
    path.with_name('away').rename(path)
    assert ledger.purge().state.tolist() == ['removed'] and not list(path.parent.iterdir())

def test_a_new_copy_at_the_old_path_is_purged_separately(noted, monkeypatch):
    ledger, path = noted
    killed_at(4, ledger, monkeypatch)
    copy_of(path.name, path.parent.parent)
    ledger.note(path, path.name)
    assert ledger.purge().state.tolist() == ['removed'] and path.exists()
    ledger.add(people(['a', 'b', 'c']), [1])
    assert ledger.purge().state.tolist() == ['removed'] and not path.exists()

def test_a_copy_moved_aside_cannot_be_confirmed_as_removed(noted, monkeypatch):
    ledger, path = noted
    killed_at(4, ledger, monkeypatch)
    with pytest.raises(rsu.erasure.ledger.InputError, match='purging-.*still exists: remove or purge it first'):
        ledger.removed(path)
