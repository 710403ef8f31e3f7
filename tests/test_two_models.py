"The attacker who sees several models, and the shadow models that unlearn in a sequence."
from time import process_time
import numpy as np, pytest, torch
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError
from rsu.core.split import ForgetSplit
from rsu.evaluation.audit import shadows, u_lira_columns
from rsu.evaluation.two_models import (Release, shadow_releases, target_release, two_model_attack, two_model_columns,
                                       two_model_table)
from rsu.ranking.rankers import Random
from rsu.sequence.sequence import ByClass, SeqUnlearn

nothing = FineTune(n_epoch=0)

@pytest.fixture(scope='module')
def ranking(learn): return Random().rank(learn, ForgetSplit(learn.dls, 'random:24', seed=0))

@pytest.fixture(scope='module')
def pairs(learn, ranking): return shadows(learn, ranking.forget, 6)

def simulated(seed, n=100, n_models=2, leak=0.):
    "A run whose models have random outputs; the forgotten samples lose the class that they had before"
    rng = np.random.default_rng(seed)
    stage = rng.permutation(np.repeat([1,1,-1,-1,0], n//5))
    stage[stage == 1] = 1 + np.arange((stage == 1).sum()) % (n_models-1)
    first = 2*rng.normal(size=(n,10))
    logits = [first, *(first + .3*rng.normal(size=(n,10)) for _ in range(n_models-1))]
    for t in range(1, n_models):
        gone = (stage > 0) & (stage <= t)
        logits[t][gone,first[gone].argmax(1)] -= leak
    groups = tuple(str(t) for t in range(1, n_models))
    return Release(torch.as_tensor(np.stack(logits)).softmax(-1), stage, np.arange(n), groups)

def runs(k=6, **kwargs): return [simulated(seed, **kwargs) for seed in range(k)]

def test_u_lira_unlearns_a_sequence_by_risk(learn, ranking, pairs):
    new = unlearn(learn, ranking, SeqUnlearn(nothing, groups=2), quiet=True)
    assert 0 <= u_lira_columns(pairs)(new, ranking)['u_lira'] <= 1

def test_shadow_models_of_other_samples_have_no_scores(learn, ranking):
    new = unlearn(learn, ranking, SeqUnlearn(nothing, groups=2), quiet=True)
    others = shadows(learn, np.setdiff1d(np.arange(200), ranking.forget)[:20], 6)
    with pytest.raises(InputError, match='that the ranking does not score'): u_lira_columns(others)(new, ranking)

def test_a_shadow_model_divides_its_samples_by_the_scores_of_the_ranking(ranking, pairs):
    score = dict(zip(ranking.forget, ranking.scores))
    for r in shadow_releases(pairs, SeqUnlearn(nothing, groups=2), ranking):
        first,second = ([score[i] for i in r.sample[r.stage == t]] for t in (1,2))
        assert len(first) == len(second) == 6 and min(first) > max(second)

def test_a_repair_is_a_stage_that_forgets_nothing(learn, ranking):
    how = SeqUnlearn(nothing, groups=2, repair=FineTune(n_epoch=1, lr=1e-5, bs=64))
    _,r = target_release(learn, ranking, how)
    assert r.groups == ('1','2','repair') and len(r.probs) == 4 and set(r.stage) == {-1,0,1,2}

def test_the_columns_are_computed_once_for_each_algorithm(learn, ranking, pairs, monkeypatch):
    calls = []
    monkeypatch.setattr('rsu.evaluation.two_models.shadow_releases',
                        lambda *args, **kwargs: calls.append(args) or runs(n_models=3))
    columns = two_model_columns(pairs, classifier='logistic')
    hows = nothing,SeqUnlearn(nothing, 2)
    models = [unlearn(learn, ranking, how, seed=s, quiet=True) for how in hows for s in (0,1)]
    for o in models: columns(o, ranking)
    assert len(calls) == 2

@pytest.mark.parametrize('classifier', ['forest','logistic'])
def test_an_attacker_with_all_models_knows_the_group(classifier):
    table = two_model_table(runs(n_models=3, leak=6.), comparisons=['never seen'], classifier=classifier)
    areas = table.set_index(['models','group']).auc
    assert areas['all','all'] > .95 and areas['first and last','all'] > .95 and abs(areas['first','all']-.5) < .15

def test_attacks_after_each_stage_count_what_was_forgotten_so_far():
    table = two_model_table(runs(n_models=3), comparisons=['never seen'], models=['first and last'], stages='each',
                            classifier='logistic').set_index(['stage','group']).members
    assert table.to_dict() == {(1,'all'): 120, (1,'1'): 120, (2,'all'): 240, (2,'1'): 120, (2,'2'): 120}

def test_the_table_and_the_attack_on_tensors_agree():
    *known,target = runs(5, leak=.3)
    pairs = [(r.probs[:,r.stage > 0], r.probs[:,r.stage < 0]) for r in (*known, target)]
    attack = two_model_attack(pairs[:-1], pairs[-1], classifier='logistic', fpr=.1)
    row = two_model_table(known, target, comparisons=['never seen'], models=['first and last'], classifier='logistic',
                          fpr=.1).iloc[0]
    assert all(np.isclose(row[k], attack[k], atol=1e-3) for k in attack)

@pytest.mark.parametrize('bad,words', [
    (dict(classifier='tree'), "must be 'forest' or 'logistic'"), (dict(stages='first'), 'must be'),
    (dict(features=[]), 'must be'), (dict(models=['both']), 'must be'), (dict(tops=[-1]), 'must be'),
    (dict(tops=[10]), 'less than the number of classes'), (dict(runs=runs(3)), '3 shadow runs'),
    (dict(runs=runs(1), target=simulated(9)), '1 shadow runs'),
    (dict(target=simulated(9, n_models=3)), 'cannot be compared')])
def test_bad_tables(bad, words):
    with pytest.raises(InputError, match=words): two_model_table(**{**dict(runs=runs(4)), **bad})

def test_groups_by_class_need_all_classes_in_each_shadow(ranking, pairs):
    with pytest.raises(InputError, match='cannot be compared|in different orders'):
        two_model_table(shadow_releases(pairs, SeqUnlearn(nothing, ByClass()), ranking), classifier='logistic')

def test_no_shadow_models():
    with pytest.raises(InputError, match='give what shadows'): shadow_releases([], nothing)

def test_5000_samples_take_less_than_a_minute():
    *known,target = runs(9, n=5000, n_models=3)
    start = process_time()
    two_model_table(known, target)
    assert process_time()-start < 60
