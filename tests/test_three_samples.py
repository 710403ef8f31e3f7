"The relative test of three models: invariances, degenerate outputs and columns of `evaluate`."
import numpy as np
import pytest
import torch
from rsu.algorithms.base import FineTune
from rsu.algorithms.exact import Retrain
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError
from rsu.core.split import ForgetSplit
from rsu.evaluation.evaluate import evaluate, fit_oracles
from rsu.evaluation.three_samples import relative_mmd, relative_mmd_columns

@pytest.fixture
def outputs():
    rng = np.random.default_rng(0)
    return [torch.as_tensor(rng.normal(size=(80,4))+shift) for shift in (0., .2, .6)]

def test_order_of_samples_and_position_do_not_matter(outputs):
    base = relative_mmd(*outputs, bandwidth=1.)
    order = torch.randperm(80)
    for other in ([o[order] for o in outputs], [o+7. for o in outputs]):
        assert np.allclose(base, relative_mmd(*other, bandwidth=1.), rtol=0, atol=1e-9)

def test_the_default_bandwidth_has_the_units_of_the_outputs(outputs):
    few = [o[:20] for o in outputs] # all pairs are in the median
    assert np.allclose(relative_mmd(*few), relative_mmd(*(1000*o for o in few)), rtol=0, atol=1e-9)

def test_the_median_distance_is_that_of_all_models(outputs):
    few = [o[:20] for o in outputs]
    median = float(torch.pdist(torch.cat(few)).median())
    assert np.allclose(relative_mmd(*few), relative_mmd(*few, bandwidth=median), rtol=0, atol=1e-9)

def test_equal_models_give_no_evidence(outputs):
    u = outputs[0]
    got = relative_mmd(u, u, u)
    assert got[:2] == (0., 0.) and np.isnan([got.z, got.p]).all()

def test_outputs_that_do_not_vary_have_distances_but_no_p():
    zero, one = torch.zeros(20), torch.ones(20)
    got = relative_mmd(zero, zero, one, bandwidth=1., n_features=1)
    assert got.to_retrained == 0 < got.to_original and got.difference < 0
    assert np.isfinite(relative_mmd(zero, zero, zero).to_original)

def test_margins_columns_and_lists_are_the_same(outputs):
    u, r, o = (a[:,0] for a in outputs)
    base = relative_mmd(u, r, o)
    assert base == relative_mmd(u[:,None], [r[:,None]], o[:,None]) == relative_mmd(u.numpy(), (r.numpy(),), o.numpy())
    assert np.allclose(base, relative_mmd(u, [r, r], o, bandwidth=None), atol=.05)

def test_the_se_agrees_with_the_spread_over_samples():
    rng, found = np.random.default_rng(1), []
    for _ in range(300):
        easy = rng.normal(size=60)
        outputs = [torch.as_tensor(easy+shift+.3*rng.normal(size=60)) for shift in (0., .3, 1.5)]
        found.append(relative_mmd(*outputs, bandwidth=1., n_features=100))
    spread, se = np.std([o.difference for o in found]), np.mean([o.se for o in found])
    assert abs(se/spread-1) < .15

def test_one_large_pass_needs_memory_linear_in_the_samples():
    u, r, o = torch.randn(3, 20000)
    assert abs(relative_mmd(u, r, o, n_features=20).difference) < .01

@pytest.mark.parametrize('bad,words', [(dict(bandwidth=0.), 'bandwidth=0'), (dict(n_features=0), 'n_features=0')])
def test_bad_settings(outputs, bad, words):
    with pytest.raises(InputError, match=words): relative_mmd(*outputs, **bad)

def test_bad_outputs(outputs):
    u, r, o = outputs
    for bad in ((u, r, o[:5]), (u, r[:,:2], o), (u[None], r[None], o[None]), (u[:3], r[:3], o[:3]), (u, [], o)):
        with pytest.raises(InputError, match='cannot be compared'): relative_mmd(*bad)
    with pytest.raises(InputError, match='NaN or infinite'): relative_mmd(u.log(), r, o)

def test_columns_of_evaluate(learn, split):
    oracles = fit_oracles(learn, split, 2, quiet=True)
    new = unlearn(learn, split, FineTune(n_epoch=0), quiet=True)
    table = evaluate(new, oracles, more=[relative_mmd_columns(oracles)], controls=(), quiet=True)
    assert {'relative_mmd','relative_mmd_ci','relative_mmd_test','mmd_retrained'} <= set(table)
    assert table.loc['do nothing','relative_mmd'] == table.loc['unlearned','relative_mmd']
    few = ForgetSplit(learn.dls, split.forget[:9])
    some = relative_mmd_columns([unlearn(learn, few, Retrain(), seed=s, quiet=True) for s in range(2)])(learn, few)
    assert np.isnan([some['relative_mmd'], some['mmd_retrained']]).all() and np.isfinite(some['relative_mmd_test'])

def test_blocks_of_samples_give_the_same_result():
    u, r, o = (torch.as_tensor(np.random.default_rng(0).normal(size=(2100,1))+shift) for shift in (0., .1, .2))
    d = [(torch.cat([(a*w).cos(), (a*w).sin()], 1)-torch.cat([(u*w).cos(), (u*w).sin()], 1))
         for w in [np.random.default_rng(0).normal()] for a in (r, o)]
    want = [((a.sum(0)**2).sum()-(a**2).sum()).item()/(2100*2099) for a in d]
    got = relative_mmd(u, r, o, bandwidth=1., n_features=1)
    assert np.allclose([got.to_retrained, got.to_original], want, rtol=0, atol=1e-12)

def test_a_learner_is_not_an_output(learn):
    with pytest.raises(InputError, match=r"A Learner is not an output: give Outputs\(learn.model"):
        relative_mmd(learn, learn, learn)
