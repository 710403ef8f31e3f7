"Statistics of small samples compared with independent computations: degrees of freedom, corrections, ties at a bound."
from math import gamma, sqrt

import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from rsu.ranking.membership import attack_p, attack_r, auc, entanglement, lira, rmia, tpr_at_fpr
from rsu.evaluation.audit import two_way_se, indiscernibility
from rsu.evaluation.distance import _points, klom, margin_z
from rsu.evaluation.evaluate import _share_se, _with_se
from rsu.evaluation.intervals import differences, resampled, summarise
from rsu.evaluation.metrics import auc_se, average_gap, tow

def counted_auc(members, others):
    "By counting pairs; a tie counts half"
    return np.mean([(a > b) + (a == b)/2 for a in members for b in others])

@pytest.mark.parametrize('fpr', [.01, .03, .29])
def test_tpr_includes_the_false_positive_rate_itself(fpr):
    others = np.arange(100.)
    allowed = round(100*fpr)
    just, over = 100 - allowed - .5, 100 - allowed - 1.5 # above all but `allowed` of the others, and one more
    assert tpr_at_fpr([just], others, fpr) == 1 and tpr_at_fpr([just, over], others, fpr) == .5
    # members and others of one score are found together, or not at all
    assert tpr_at_fpr([99.], others, .01) == 1 and tpr_at_fpr([98.], others, .01) == 0

@pytest.mark.parametrize('seed', range(5))
def test_auc_se_is_delongs(seed):
    rng = np.random.default_rng(seed)
    members, others = rng.integers(0, 6, 5)*1., rng.integers(0, 5, 7)*1.
    psi = np.array([[(a > b) + (a == b)/2 for b in others] for a in members])
    theta, (n, m) = psi.mean(), psi.shape
    by_member = ((psi.mean(1) - theta)**2).sum()/(n-1)
    by_other = ((psi.mean(0) - theta)**2).sum()/(m-1)
    assert auc_se(members, others) == pytest.approx(sqrt(by_member/n + by_other/m), rel=1e-12)
    assert auc(members, others) == pytest.approx(counted_auc(members, others), rel=1e-12)

def test_auc_se_by_hand():
    # members 1 and 3 beat half and all of the others 0 and 2: variances of 1/8 over 2 samples each, 1/16 + 1/16
    assert auc_se([1., 3.], [0., 2.]) == pytest.approx(sqrt(1/8), rel=1e-12)

@pytest.mark.parametrize('k,n', [(0, 6), (3, 6), (6, 6), (1, 50)])
def test_share_se_adds_two_successes_and_two_failures(k, n):
    # the centre is that of Wilson's interval of two standard errors
    low, high = stats.binomtest(k, n).proportion_ci(2*stats.norm.cdf(2) - 1, method='wilson')
    centre = (low + high)/2
    assert _share_se(k, n) == pytest.approx(sqrt(centre*(1-centre)/(n+4)), rel=1e-9)

def test_share_se_by_hand():
    # none of 6: 2 of 10, an error of sqrt(.2*.8/10)
    assert _share_se(0, 6) == pytest.approx(.12649, abs=1e-5)
    res = _with_se(right=np.array([False]*6), loss=np.array([1., 2., 4.]))
    assert res['right'] == 0 and res['right_se'] == pytest.approx(.12649, abs=1e-5)
    assert res['loss_se'] == pytest.approx(stats.sem([1., 2., 4.]), rel=1e-12)

def clustered(v, labels):
    "Variance of a mean by clusters, with the correction of G/(G-1) (Cameron, Gelbach & Miller 2011)"
    sums = pd.Series((v - v.mean()).ravel()).groupby(labels.ravel()).sum()
    return (sums**2).sum()/v.size**2 * len(sums)/(len(sums)-1)

@pytest.mark.parametrize('shape', [(2, 2), (4, 3), (6, 20)])
def test_two_way_clustered_error(shape):
    rng = np.random.default_rng(0)
    model, sample = np.indices(shape)
    v = model/shape[0] + sample/shape[1] + .1*rng.normal(size=shape)
    parts = [clustered(v, labels) for labels in (model, sample, model*shape[1] + sample)]
    assert parts[0] + parts[1] - parts[2] > max(parts[:2]) # so that the cells count
    assert two_way_se(torch.tensor(v)) == pytest.approx(sqrt(parts[0] + parts[1] - parts[2]), rel=1e-9)

def test_two_way_clustered_error_by_hand():
    # rows 1 and 3, columns 1 and 3: 1 + 1 - (8/3)/4
    assert two_way_se(torch.tensor([[0., 2.], [2., 4.]], dtype=torch.float64)) == pytest.approx(sqrt(4/3), rel=1e-12)

def test_a_mean_over_seeds_has_a_t_interval():
    x, se = np.array([.7, .8, .95]), [.02, .03, .04]
    runs = pd.DataFrame(dict(model='A', seed=range(3), tow=x, tow_se=se, z=x))
    low, high = stats.t.interval(.95, 2, x.mean(), stats.sem(x))
    res = summarise(runs).loc['A']
    assert res.z_ci_seeds == pytest.approx((high-low)/2, rel=1e-9)
    assert res.tow_ci == pytest.approx(np.hypot((high-low)/2, stats.norm.ppf(.975)*np.mean(se)), rel=1e-4)

def hedges(df): return gamma(df/2)/(sqrt(df/2)*gamma((df-1)/2)) # exactly (Hedges 1981)

def test_a_paired_difference_is_a_t_test_with_hedges_correction():
    a, b = np.array([.7, .8, .95, .9, .6]), np.array([.6, .75, .8, .9, .5])
    runs = pd.DataFrame(dict(model=['A']*5 + ['B']*5, seed=[*range(5)]*2, tow=[*a, *b]))
    res, d = differences(runs, 'B', 'tow').iloc[0], a-b
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval()
    assert (res.low, res.high, res.p) == pytest.approx((low, high, test.pvalue), rel=1e-9)
    assert res.effect == pytest.approx(d.mean()/d.std(ddof=1)*hedges(4), rel=5e-3)

def test_an_unpaired_difference_is_welchs_test_with_hedges_correction():
    a, b = np.array([.7, .8, .95]), np.array([.6, .75, .8, .9, .5])
    runs = pd.DataFrame(dict(model=['A']*3 + ['B']*5, seed=[*range(3), *range(10, 15)], tow=[*a, *b]))
    res = differences(runs, 'B', 'tow').iloc[0]
    test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval()
    assert (res.low, res.high, res.p) == pytest.approx((low, high, test.pvalue), rel=1e-9)
    assert not res.paired and res.n == 3
    sd = sqrt((a.var(ddof=1) + b.var(ddof=1))/2)
    assert res.effect == pytest.approx((a.mean()-b.mean())/sd*hedges(6), rel=3e-3)

def test_a_difference_over_samples_has_a_normal_interval():
    draws = [np.random.default_rng(k).normal(size=200) for k in range(2)]
    runs = pd.DataFrame(dict(model=['A', 'B'], seed=0, split='s', tow=[.9, .5], draws=[dict(tow=o) for o in draws]))
    res, sd = differences(runs, 'B', 'tow').iloc[0], np.std(draws[0]-draws[1])
    assert res.over == 'samples' and res.difference == pytest.approx(.4)
    assert (res.low, res.high) == pytest.approx(stats.norm.interval(.95, .4, sd), rel=1e-3)
    assert res.p == pytest.approx(2*stats.norm.cdf(-.4/sd), rel=1e-9)

def test_bootstrap_draws_are_means_of_n_samples():
    x = np.array([[0., 1.], [1., 1.], [5., 1.], [7., 1.]])
    res = resampled(x, 4000)
    assert res.shape == (4000, 2) and (res[:, 1] == 1).all()
    # a bootstrap mean has the variance of the population, divided by n and not by n-1
    assert res[:, 0].std() == pytest.approx(x[:, 0].std()/2, rel=.03)

def test_margin_z_uses_n_minus_1_degrees_of_freedom():
    refs, phi = torch.tensor([[0., 1.], [2., 1.], [4., 4.]]), torch.tensor([5., 0.])
    pooled = np.mean([np.var([0, 2, 4], ddof=1), np.var([1, 1, 4], ddof=1)]) # 4 and 3
    want = np.array([5-2, 0-2])/sqrt(pooled*(1 + 1/3))
    res = margin_z(phi, refs)
    assert res.z.tolist() == pytest.approx(want.tolist(), rel=1e-12)
    assert (res.mean, res.spread) == pytest.approx((want.mean(), want.std()), rel=1e-12)

def test_lira_uses_maximum_likelihood_moments():
    refs, members = torch.tensor([[3.], [5.], [0.], [2.]]), torch.tensor([[1], [1], [0], [0]])
    phi = torch.tensor([2.5])
    want = stats.norm.logpdf(2.5, 4, 1) - stats.norm.logpdf(2.5, 1, 1) # deviations of 1 by K, of sqrt 2 by K-1
    assert lira(phi, refs, members).item() == pytest.approx(want, rel=1e-9)
    assert lira(phi, refs, members, online=False).item() == pytest.approx(stats.norm.logcdf(1.5), rel=1e-9)

def test_attacks_count_ties_as_published():
    # of two references without the sample one has as high a loss, which is not a higher one
    assert attack_r([1.], [[1.], [0.]], [[0], [0]]).item() == .5
    assert attack_p([1.], [0., 1., 2., 3.]).item() == .5
    # a ratio of 1 for x and for a half of the population: points that rose as much have not risen less
    half = rmia([.5], [[.5]], [[0]], [.5, .2], [[.5, .4]], a=1.).item()
    assert half == .5

def test_entanglement_by_hand():
    # each set spreads by 1 about its mean, and the means lie 2 from their middle: (1+1)/((4+4)/2)
    assert entanglement([[1.], [3.]], [[5.], [7.]]) == pytest.approx(.5)

def test_points_halve_with_every_half_of_epsilon():
    eps = torch.tensor([0., .49, .5, .99, 1., 1.99, 2.])
    assert _points(eps, 8).tolist() == [1, 1, .5, .5, .25, .125, 0] # 7 negatives show an epsilon of up to log 7 < 2

def test_klom_by_hand():
    # two bins over [0, 4]: three of four unlearned and one of four oracles lie below 2, which is in the upper one
    u, o = torch.tensor([[0.], [1.], [1.], [4.]]), torch.tensor([[0.], [2.], [3.], [4.]])
    assert klom(u, o, bins=2).item() == pytest.approx(.75*np.log(3) + .25*np.log(1/3), rel=1e-6)

def test_tow_and_average_gap_by_hand():
    u, o = dict(forget=.5, retain=.9, test=.8, mia=.4), dict(forget=.4, retain=1., test=.9, mia=.6)
    assert tow(u, o) == pytest.approx(.9*.9*.9) and tow(o, u) == tow(u, o)
    assert average_gap(u, o) == pytest.approx((.1 + .1 + .1 + .2)/4)
    assert [indiscernibility(o) for o in (0, .25, .5, .75, 1)] == pytest.approx([0, .5, 1, .5, 0])
