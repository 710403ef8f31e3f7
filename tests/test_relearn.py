"Relearning: input that is refused."
import numpy as np, pandas as pd, pytest
from rsu.core.config import InputError
from rsu.core.split import ForgetSplit
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.evaluation.relearn import Relearned, anamnesis_index, relearn_time

@pytest.mark.parametrize('bad,words', [
    (dict(target=93), 'target=93 must be a number in [0, 1]'), (dict(target=np.nan), 'target=nan must be a number'),
    (dict(lr=0.), 'lr=0.0 must be a number in (0, inf)'), (dict(bs=0), 'bs=0 must be a whole number in [1, inf)'),
    (dict(max_epoch=-1), 'max_epoch=-1 must be a whole number in [0, 100000]'),
    (dict(per='batch'), "per='batch' must be 'step' or 'epoch'"), ({}, 'no record of having forgotten these samples')],
    ids=lambda o: str(o)[:30])
def test_arguments_that_are_refused(bad, words, learn, split):
    with pytest.raises(InputError) as e: relearn_time(learn, split, **bad)
    assert words in str(e.value)

def test_the_record_of_other_samples_is_not_used(learn, split):
    new = unlearn(learn, split, FineTune(n_epoch=0), quiet=True)
    with pytest.raises(InputError, match='no record of having forgotten these samples'):
        relearn_time(new, ForgetSplit(learn.dls, split.forget[:1]))

def relearned(n, **kw): return Relearned(n, n, 1., pd.Series([*[0.]*n, 1.]), .01, 64, 'step')._replace(**kw)

@pytest.mark.parametrize('oracles,kw,words', [
    ([], {}, 'There is no oracle to compare with'),
    ([relearned(2)], dict(alpha=1.), 'alpha=1.0 must be a number in [0, 1)'),
    ([relearned(2)], dict(eps=0.), 'eps=0.0 must be a number in (0, inf)'),
    ([relearned(2), relearned(2, target=.5)], {}, 'The models were relearned in different ways'),
    ([relearned(2, lr=.1)], {}, 'The models were relearned in different ways')])
def test_an_index_that_cannot_be_computed(oracles, kw, words):
    with pytest.raises(InputError) as e: anamnesis_index(relearned(4), oracles, **kw)
    assert words in str(e.value)
