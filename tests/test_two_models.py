"The attacker who sees several models, and the shadow models that unlearn in a sequence."
import numpy as np, pytest
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError
from rsu.core.split import ForgetSplit
from rsu.evaluation.audit import shadows, u_lira_columns
from rsu.ranking.rankers import Random
from rsu.sequence.sequence import SeqUnlearn

@pytest.fixture(scope='module')
def ranking(learn): return Random().rank(learn, ForgetSplit(learn.dls, 'random:24', seed=0))

@pytest.fixture(scope='module')
def pairs(learn, ranking): return shadows(learn, ranking.forget, 6)

def test_u_lira_unlearns_a_sequence_by_risk(learn, ranking, pairs):
    new = unlearn(learn, ranking, SeqUnlearn(FineTune(n_epoch=0), groups=2), quiet=True)
    assert 0 <= u_lira_columns(pairs)(new, ranking)['u_lira'] <= 1

def test_shadow_models_of_other_samples_have_no_scores(learn, ranking):
    new = unlearn(learn, ranking, SeqUnlearn(FineTune(n_epoch=0), groups=2), quiet=True)
    others = shadows(learn, np.setdiff1d(np.arange(200), ranking.forget)[:20], 6)
    with pytest.raises(InputError, match='that the ranking does not score'): u_lira_columns(others)(new, ranking)
