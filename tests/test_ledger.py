"Ledgers that must not be opened, positions that are not in the data, and copies that changed after they were noted."
import pytest
from common import people
from rsu.core.config import InputError
from rsu.core.datasets import digits
from rsu.core.recipe import Recipe, mlp
from rsu.erasure.ledger import Ledger
from rsu.ranking.bank import ReferenceBank

@pytest.fixture
def answered(tmp_path):
    "A folder with a ledger of one request, by position."
    Ledger(tmp_path/'a').add(digits(n=300), [3])
    (tmp_path/'other.key').write_text('ab'*32 + ' 0', encoding='utf-8')
    (tmp_path/'short.key').write_text('secret', encoding='utf-8')
    (tmp_path/'e').mkdir()
    (tmp_path/'e'/'ledger.json').write_text('{}', encoding='utf-8')
    (tmp_path/'e.key').write_text('ab'*32 + ' 0', encoding='utf-8')
    return tmp_path

@pytest.mark.parametrize('folder, key, by, says', [
    ('a', 'other.key', None, 'is not the key of this ledger'),
    ('a', 'gone.key', None, 'there is no key in'),
    ('a', 'short.key', None, 'is not the key of a ledger'),
    ('a', None, 'person', 'identifies samples by position, not by person'),
    ('a', 'a/in.key', None, 'whoever has the folder would have it'),
    ('e', None, None, 'is not a ledger of this version'),
    ('other.key', None, None, 'since a file has that name')])
def test_a_ledger_that_is_not_opened(answered, folder, key, by, says):
    with pytest.raises(InputError, match=says): Ledger(answered/folder, by=by, key=key and answered/key)
    assert not (answered/'gone.key').exists()

def test_the_key_is_for_its_owner_only(answered):
    assert (answered/'a.key').stat().st_mode & 0o777 == 0o600

@pytest.mark.parametrize('spelling', ['a', 'a/', 'b/../a', './a', 'link', '.'])
def test_the_key_lies_outside_the_folder_by_default(spelling, tmp_path, monkeypatch):
    for o in ('a', 'b'): (tmp_path/o).mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'a')
    monkeypatch.chdir(tmp_path/'a' if spelling == '.' else tmp_path)
    ledger = Ledger(spelling)
    ledger.add(digits(n=100), [3])
    assert ledger.key_file == tmp_path/'a.key' and ledger.key_file.exists()
    files = [o for o in (tmp_path/'a').rglob('*') if o.is_file()]
    assert tmp_path/'a'/'ledger.json' in files
    assert not [o for o in files if ledger.key.hex() in o.read_text(encoding='utf-8') or o.suffix == '.key']

def test_other_data_and_what_is_not_a_position(answered):
    ledger, dls = Ledger(answered/'a'), digits(n=300)
    with pytest.raises(InputError, match='is not the one that this ledger'): ledger.forgotten(digits(n=300, seed=1))
    with pytest.raises(InputError, match=r"is one id: give a list of them, \['patient-3'\]"): ledger.knows('patient-3')
    with pytest.raises(InputError, match="'patient-3', which is not a position: give whole numbers"):
        ledger.add(dls, ['patient-3'])
    with pytest.raises(InputError, match='300, which is not a position: give whole numbers from 0 to 299'):
        ledger.add(dls, [3, 300])

def test_a_copy_that_was_never_noted(tmp_path):
    ledger = Ledger(tmp_path/'ledger')
    (tmp_path/'old').write_text('weights', encoding='utf-8')
    ledger.note(tmp_path/'old', 'weights')
    with pytest.raises(InputError, match=f"on this ledger's list, which contains: {tmp_path.resolve()/'old'}"):
        ledger.removed(tmp_path/'unknown')

def test_another_bank_in_the_place_of_one_that_was_purged(tmp_path):
    dls = people(['a', 'b', 'c'])
    learn = Recipe(mlp, n_epoch=1).fit(dls, quiet=True)
    ledger, path = Ledger(tmp_path/'ledger', by='person'), tmp_path/'bank'
    for k in range(2):
        ReferenceBank.fit(learn, n=2, path=path, quiet=True)
        ledger.note(path, 'bank')
        assert ledger.state_of(path) == 'noted'
        ledger.add(dls, [k])
        shard = path/'reference-0-0001.safetensors'
        content = shard.read_bytes()
        shard.write_bytes(b'of another bank')
        assert ledger.purge().state.tolist() == ['changed since it was noted'] and shard.exists()
        shard.write_bytes(content)
        assert ledger.purge().state.tolist() == ['removed'] and not shard.exists()
        assert ledger.state_of(path) == 'purged'
