"The audit from one run: records that do not fit, ties, and the limits of the bounds."
import numpy as np
import pytest
import torch
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError
from rsu.core.datasets import digits
from rsu.core.indexing import indices
from rsu.core.recipe import Recipe, small_cnn
from rsu.core.split import ForgetSplit
from rsu.evaluation.evaluate import evaluate
from rsu.evaluation.one_run import (Canaries, audit_guesses, clopper_pearson_epsilon, epsilon_lower_bound,
                                    gaussian_epsilon, gaussian_lower_bound, one_run_columns, one_run_epsilon, one_run_p)
from rsu.ranking.rankers import Random

@pytest.fixture(scope='module')
def canaries(): return Canaries(digits(n=200, device='cpu'), 'random:60', seed=3)

@pytest.fixture(scope='module')
def trained(canaries): return Recipe(small_cnn, n_epoch=1, lr=5e-3).fit(canaries.dls, quiet=True)

def test_the_coins_are_independent_of_the_choice_of_canaries_and_of_each_other():
    dls = digits(n=200, device='cpu')
    coins = np.stack([Canaries(dls, range(100), seed=s).included for s in range(200)]).astype(float)
    assert abs(coins.mean()-.5) < 4*.5/coins.size**.5
    assert abs(np.corrcoef(coins.T)[np.triu_indices(100, 1)].mean()) < .01
    assert coins.sum(1).std() > 3 # not halves of a fixed size: the standard deviation of fair coins is 5

def test_left_out_canaries_are_in_the_data_but_never_drawn(canaries, trained):
    drawn = indices(canaries.dls.train)
    assert not np.isin(canaries.held_out, drawn).any() and np.isin(canaries.forget, drawn).all()
    assert len(drawn) == 200-len(canaries.held_out) and canaries.N == 200
    assert not np.isin(canaries.held_out, canaries.retain).any()

def test_a_ranking_of_canaries_can_be_unlearned_and_audited(canaries, trained):
    ranked = Random().rank(trained, canaries)
    assert not isinstance(ranked, Canaries)
    new = unlearn(trained, ranked, FineTune(n_epoch=0), quiet=True)
    assert one_run_epsilon(new, canaries).table.equals(one_run_epsilon(trained, canaries).table)
    with pytest.raises(InputError, match='A Ranking has no record of the coins'): one_run_epsilon(new, ranked)

def test_records_that_do_not_fit_are_refused(canaries, trained):
    new = unlearn(trained, canaries, FineTune(n_epoch=0), quiet=True)
    with pytest.raises(InputError, match='not chosen by coin flips'):
        one_run_epsilon(new, ForgetSplit(canaries.dls, canaries.forget))
    few = unlearn(trained, ForgetSplit(trained.dls, canaries.forget[:5]), FineTune(n_epoch=0), quiet=True)
    with pytest.raises(InputError, match='not forgotten these canaries'): one_run_epsilon(few, canaries)
    with pytest.raises(InputError, match='0 of .* or on other data'):
        one_run_epsilon(trained, Canaries(digits(n=200, seed=1, device='cpu'), canaries.canaries, seed=3))
    new.unlearning.parent = None
    with pytest.raises(InputError, match='read from a file'): one_run_epsilon(new, canaries)

def test_too_few_canaries_or_the_whole_training_set_are_refused():
    dls = digits(n=60, device='cpu')
    with pytest.raises(InputError, match='19 canaries are too few'): Canaries(dls, range(19))
    with pytest.raises(InputError, match='whole training set'): Canaries(dls, range(60))

def test_columns_of_evaluate(canaries, trained):
    new = unlearn(trained, canaries, FineTune(n_epoch=0), quiet=True)
    table = evaluate(new, oracles=2, more=[one_run_columns(canaries, k=(5,10))], quiet=True)
    assert list(table.index) == ['do nothing','unlearned','retrain']
    assert table.loc['do nothing','one_run_epsilon'] == table.loc['unlearned','one_run_epsilon']
    assert (table[['one_run_epsilon','one_run_mu']] >= 0).all(axis=None)

def test_equal_scores_give_no_more_than_chance():
    for coins in (np.random.default_rng(0).random(1000) < .5, np.arange(1000) < 500):
        assert audit_guesses(np.zeros(1000), coins, k=(10,100,500)).epsilon == 0

def test_tensors_infinite_scores_and_every_k():
    coins = torch.arange(40) % 2 == 0
    scores = torch.where(coins, torch.inf, -torch.inf)
    for k in range(1, 21):
        row, = audit_guesses(scores, coins, k=k, direction='high').table.to_dict('records')
        assert (row['correct'], row['guesses']) == (2*k, 2*k)
    low = audit_guesses(-scores, coins, k=20).table.set_index('included')
    assert low.correct.to_dict() == {'high': 0, 'low': 40} and low.epsilon['low'] > 2

def test_several_k_share_the_level():
    coins = np.arange(200) < 100
    alone = audit_guesses(coins, coins, k=50, direction='high').epsilon
    shared = audit_guesses(coins, coins, k=[50,10], direction='high').table
    assert shared.epsilon[0] == epsilon_lower_bound(100, 100, 200, beta=.025) < alone

@pytest.mark.parametrize('correct,guesses,n', [(11,10,20), (5,21,20)])
def test_impossible_counts(correct, guesses, n):
    for f in (epsilon_lower_bound, gaussian_lower_bound):
        with pytest.raises(InputError, match='impossible'): f(correct, guesses, n)
    with pytest.raises(InputError, match='impossible'): one_run_p(1., correct, guesses, n)

def test_no_guesses_and_extreme_counts_are_finite():
    assert epsilon_lower_bound(0, 0, 10) == gaussian_lower_bound(0, 0, 10) == 0
    for n in (1, 10, 5000):
        assert np.isfinite([epsilon_lower_bound(n, n, n), gaussian_lower_bound(n, n, n)]).all()
    assert clopper_pearson_epsilon(0, 10, 10, 10) == 0 < clopper_pearson_epsilon(10, 10, 0, 10)
    assert np.isfinite(gaussian_epsilon(100.)) and gaussian_epsilon(1e-9) == 0

@pytest.mark.parametrize('bad,words', [(dict(k=0), 'k=0'), (dict(k=()), 'k='), (dict(k=2.5), 'k=2.5'),
                                       (dict(beta=0.), 'beta=0'), (dict(delta=1.), 'delta=1'),
                                       (dict(direction='up'), "direction='up'"), (dict(k=11), '22 canaries')])
def test_bad_settings(bad, words):
    coins = np.arange(20) % 2 == 0
    with pytest.raises(InputError, match=words): audit_guesses(np.arange(20.), coins, **bad)
