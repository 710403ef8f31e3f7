"Requests that a stream rejects, and the same arguments in every call, before a purge and after it."
import numpy as np, pytest
from common import people
from rsu.algorithms.descent import FineTune
from rsu.algorithms.exact import Retrain
from rsu.core.config import InputError
from rsu.core.recipe import Recipe, mlp
from rsu.core.store import write_shard
from rsu.erasure.ledger import Ledger
from rsu.erasure.stream import unlearn_stream

how = FineTune(n_epoch=1)

@pytest.fixture(scope='module')
def learn(): return Recipe(mlp, n_epoch=1).fit(people(['a', 'b', 'c']), quiet=True)

@pytest.mark.parametrize('requests, kwargs, by, says', [
    ([[1], [90]], {}, None, 'Position 90 is outside the training set'),
    ([[1], [0, *range(2, 30)]], {}, None, 'cover all remaining samples'),
    (np.arange(3), {}, None, 'requests= is one request'),
    ([7], {}, None, '7, which is not a request: give a list of requests, each a'),
    (['nobody'], {}, 'person', r"as \[\['nobody'\]\] for one sample or person"),
    ([['nobody']], {}, 'person', "'nobody'"),
    ([[1]], dict(made=[('nowhere', 'weights')]), None, 'give a path that exists'),
    ([[1]], dict(how='scrub'), None, "how='scrub' is"),
    ([[1]], dict(bank='bank'), None, r"is a folder: give ReferenceBank.open\('bank'\)"),
    ([[1]], dict(oracles=1), None, 'oracles=1 cannot be compared')])
def test_what_is_rejected_leaves_nothing(learn, tmp_path, requests, kwargs, by, says):
    with pytest.raises(InputError, match=says):
        unlearn_stream(learn, requests, **{'how': how, **kwargs}, ledger=Ledger(tmp_path/'ledger', by=by), quiet=True)
    assert not (tmp_path/'ledger').exists() and not (tmp_path/'ledger.key').exists()

def test_another_model(learn, tmp_path):
    unlearn_stream(learn, [[1]], Retrain(), tmp_path/'ledger', quiet=True)
    other = Recipe(mlp, n_epoch=1, seed=5).fit(learn.dls, quiet=True)
    with pytest.raises(InputError, match='is about another model'):
        unlearn_stream(other, [[2]], Retrain(), tmp_path/'ledger', quiet=True)

def test_the_same_arguments_before_a_purge_and_after(learn, tmp_path):
    weights = tmp_path/'weights.safetensors'
    write_shard(weights, learn.model.state_dict())
    for k in (1, 2):
        new = unlearn_stream(learn, [[k]], Retrain(), tmp_path/'ledger', made=[(weights, 'weights')], quiet=True)
        new.ledger.purge()
        assert not weights.exists()

def test_loaders_without_test_samples(tmp_path):
    two = people(['a', 'b', 'c'])
    two.loaders = two.loaders[:2]
    few = Recipe(mlp, n_epoch=1).fit(two, quiet=True)
    new = unlearn_stream(few, [[1], [2], [3]], Retrain(), tmp_path/'ledger', quiet=True)
    assert len(new.ledger) == 3
