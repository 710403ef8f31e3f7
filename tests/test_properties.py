"Properties that must hold for any input, tested on generated examples."
import json, tempfile
from contextlib import contextmanager
from dataclasses import fields

import numpy as np, pytest, torch
from hypothesis import assume, given, strategies as st
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from scipy import stats
from common import InterruptAt, same_weights
from rsu.ranking.membership import lira
from rsu.core.data import Order, Samples, loaders, leaves_singleton, shuffled
from rsu.core.indexing import indices, subset
from rsu.core.split import ForgetSplit
from rsu.ranking.rankers import Confidence, Random, Ranking
from rsu.core.recipe import Recipe, cifar_resnet18, derive_seed, mlp, small_cnn
from rsu.ranking.bank import halves
from rsu.app.settings import Settings
from rsu.sequence.sequence import (ByChance, ByClass, Groups, Labelled, NaturalBreaks, Quantiles, SeqUnlearn, Singly,
                                   Thresholds, share)
from rsu.algorithms.ascent import NegGradPlus, RandomLabel
from rsu.algorithms.teacher import DELETE, BadTeacher, SCRUB
from rsu.algorithms.unseen import ReGUn
from rsu.algorithms.feed import Feed, split_in_batches
from rsu.algorithms.base import FineTune, Term
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError, Value


seeds = st.integers(0, 2**32-1)

def data(N, seed=0, classes=3):
    "Loaders over `N` training samples whose first column is the sample's position."
    def part(n):
        x = torch.zeros(n, 2)
        x[:,0] = torch.arange(n)
        return Samples(x, torch.arange(n) % classes, vocab=range(classes))
    return loaders(part(N), part(6), part(6), bs=8, device='cpu')

# Requests are generated as plain numbers: fastai's loaders use Python's random generator, which hypothesis controls.
@st.composite
def requests(draw, most=120):
    "The size of a training set, and some but not all of its positions"
    N = draw(st.integers(2, most))
    return N, draw(st.permutations(range(N)))[:draw(st.integers(1, N-1))]

@st.composite
def scored(draw, most=120):
    "A request and a score for each of its samples, with ties"
    N, at = draw(requests(most))
    return N, at, draw(st.lists(st.integers(-3, 3), min_size=len(at), max_size=len(at)))

def split_of(N, at): return ForgetSplit(data(N), at)

@given(st.lists(st.integers(0, 500), min_size=1, max_size=12).filter(sum),
       st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_shares_sum_to_the_number_of_steps(total, sizes):
    parts = share(total, sizes)
    assert len(parts) == len(sizes) and all(len(o) == len(total) for o in parts)
    assert sum(map(sum, parts)) == sum(total) and min(map(min, parts)) >= 0
    # each stage has its share by size, and in every epoch too, up to rounding
    for n, part in zip(sizes, parts): assert abs(sum(part) - sum(total)*n/sum(sizes)) <= 1
    for part in parts:
        for e, n in enumerate(part): assert abs(n - sum(part)*total[e]/sum(total)) <= 1

@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_a_single_group_gets_all_steps(total): assert share(total, [17]) == [total]

orders = st.sampled_from(['descending', 'ascending', 'interleaved', 'shuffled', 'given'])
thresholds = st.lists(st.integers(-3, 3), min_size=1, max_size=4, unique=True).map(
    lambda o: Thresholds(tuple(sorted(o, reverse=True))))
divisions = st.one_of(st.integers(1, 8), st.builds(Quantiles, st.integers(1, 8)),
                      st.builds(NaturalBreaks, st.integers(1, 4)), st.just(ByClass()), st.just(Singly()),
                      st.builds(ByChance, st.integers(1, 8), st.integers(0, 99)), thresholds, st.just('labelled'))

def sequence_of(ranking, groups, order, seed, algorithm, **kwargs):
    "A sequence for that ranking. The seed draws labels for 'labelled' and the order for 'given'."
    rng = np.random.default_rng(seed)
    if groups == 'labelled': groups = Labelled(rng.choice(['a', 'b', 'c'], len(ranking)).tolist())
    names = list((Quantiles(groups) if isinstance(groups, int) else groups).divide(ranking))
    order = tuple(rng.permutation(names).tolist()) if order == 'given' else order
    return SeqUnlearn(algorithm, groups, order, seed=seed, **kwargs)

@contextmanager
def only_what_can_be_divided():
    "Rejects an example whose samples are too few for its groups"
    try: yield
    except InputError as e:
        assert 'cannot be made of' in str(e) or 'too few' in str(e)
        assume(False)

@given(scored(), divisions, orders, st.sampled_from(['held out', 'retain']), seeds)
def test_stages_partition_the_forget_set(asked, groups, order, pending, seed):
    *request, scores = asked
    ranking = Ranking.from_scores(split_of(*request), scores)
    # small batches, so that there are enough steps for every group
    algorithm = FineTune(n_epoch=3, bs=2)
    with only_what_can_be_divided():
        how = sequence_of(ranking, groups, order, seed, algorithm, pending=pending)
        stages = how.stages(ranking)
    assert sorted(np.concatenate([s.forget for s in stages])) == list(ranking.forget)
    assert all(len(s.forget) for s in stages) and len({s.name for s in stages}) == len(stages)
    gone, scores = set(), dict(zip(ranking.forget, ranking.scores))
    for s in stages:
        gone |= set(s.forget)
        assert not gone & set(s.retain), 'a forgotten sample is trained on again'
        assert set(ranking.retain) <= set(s.retain)
        assert set(s.retain) - set(ranking.retain) == (set(ranking.forget) - gone if pending == 'retain' else set())
    # groups are listed with the most exposed first, and stages follow the order
    listed = list((how.groups if isinstance(how.groups, Groups) else Quantiles(how.groups)).divide(ranking))
    mean = {s.name: np.mean([scores[o] for o in s.forget]) for s in stages}
    assert isinstance(groups, ByChance) or all(mean[a] >= mean[b] - 1e-12 for a, b in zip(listed, listed[1:]))
    names = [s.name for s in stages]
    assert sorted(names) == sorted(listed)
    if order in ('descending', 'ascending'): assert names == (listed if order == 'descending' else listed[::-1])
    if order == 'given': assert names == list(how.order)
    if isinstance(groups, int):
        sizes = [len(s.forget) for s in stages]
        assert len(stages) == groups and max(sizes) - min(sizes) <= 1
    assert [s.name for s in how.stages(ranking)] == names
    assert sum(sum(s.steps) for s in stages) == sum(algorithm.budget(ranking))

class Watch(Callback):
    "Notes the samples of each fit, by role"
    run_valid = False
    def __init__(self): self.fits = []
    def before_fit(self): self.fits.append(dict(forget=set(), retain=set(), mixed=set()))
    def before_batch(self):
        for role, (at, _) in self.learn.dls.train.now.items(): self.fits[-1][role] |= set(at.tolist())

def linear_learner(N):
    torch.manual_seed(0)
    dls = data(N)
    return Learner(dls, torch.nn.Linear(2, 3), loss_func=CrossEntropyLossFlat()), dls

steppers = [FineTune(), NegGradPlus(), RandomLabel(), RandomLabel(joint=True), SCRUB(), BadTeacher(), DELETE(),
            ReGUn()]
@given(scored(50), divisions, orders, st.sampled_from(['held out', 'retain']), st.sampled_from(steppers),
       st.booleans(), seeds, st.integers(0, 99))
def test_a_sequence_forgets_each_sample_once_and_can_be_resumed(asked, groups, order, pending, algorithm, whole, seed,
                                                                step):
    N, *request, scores = asked
    learn, dls = linear_learner(N)
    ranking = Ranking.from_scores(ForgetSplit(dls, *request), scores)
    algorithm = algorithm.replace(n_epoch=3, bs=2, lr=1e-5)
    with only_what_can_be_divided():
        how = sequence_of(ranking, groups, order, seed, algorithm, pending=pending,
                          repair=FineTune(n_epoch=1, bs=8, lr=1e-5), schedule='whole' if whole else 'each stage',
                          optimiser='kept' if whole else 'fresh')
        how.stages(ranking)
    watch = Watch()
    new = unlearn(learn, ranking, how, seed=seed, cbs=watch, quiet=True)
    # each sample is forgotten in one stage and never retained after it, as observed on the batches
    done, requested = set(), set(ranking.forget.tolist())
    groups_in_turn = [*new.unlearning.groups.values(), []] if new.unlearning.groups else [ranking.forget]
    for fit, group in zip(watch.fits, groups_in_turn):
        group, fed = set(np.asarray(group).tolist()), set.union(*fit.values())
        if group and not isinstance(algorithm, FineTune): assert group <= fit['forget'] | fit['mixed']
        assert fit['forget'] <= group and not fed & done and not fit['retain'] & group
        if pending == 'held out': assert fed & requested <= group
        done |= group
    assert done == requested
    # a sequence takes as many steps as its algorithm alone
    one_shot = unlearn(learn, ranking, algorithm, seed=seed, quiet=True)
    repair = sum(how.repair.budget(ranking))
    assert new.unlearning.steps - repair == sum(algorithm.budget(ranking)) == one_shot.unlearning.steps
    # interrupted at any step, then resumed: the same weights
    with tempfile.TemporaryDirectory() as d:
        with pytest.raises(KeyboardInterrupt):
            stop = InterruptAt(1 + step % new.unlearning.steps)
            unlearn(learn, ranking, how, seed=seed, cbs=stop, path=d, quiet=True)
        resumed = unlearn(learn, ranking, SeqUnlearn.from_json(how.to_json()), seed=seed, path=d, quiet=True)
        assert same_weights(resumed, new)
    # a sequence of one group, whatever its other settings, equals the algorithm alone
    one_group = how.replace(groups=1, repair=None, order='descending' if order == 'given' else order)
    assert same_weights(one_shot, unlearn(learn, ranking, one_group, seed=seed, quiet=True))
    of_split = unlearn(learn, ForgetSplit(dls, *request), SeqUnlearn(algorithm, 1), seed=seed, quiet=True)
    assert same_weights(one_shot, of_split)

@given(st.integers(1, 60), seeds, st.integers(2, 9))
def test_the_seed_determines_the_order(n, seed, bs):
    at = np.random.default_rng(1).permutation(200)[:n]
    one, two = Order(at, seed, bs), Order(at, seed, bs)
    passes = [one() for _ in range(3)]
    assert passes == [two() for _ in range(3)]
    if n > 12: assert passes[0] != passes[1] != passes[2]
    for p in passes:
        assert len(set(p)) == len(p) == n - leaves_singleton(n, bs) and set(p) <= set(at.tolist())
    assert Order(at)() == at.tolist() == Order(at)()
    assert (shuffled(at, seed, 1) == shuffled(at, seed, 1)).all() and sorted(shuffled(at, seed, 1)) == sorted(at)

def drawn(dl): return [o for b in dl for o in b[0][:,0].long().tolist()]

@given(st.integers(2, 60), seeds, st.integers(1, 60), st.integers(2, 9))
def test_a_subset_draws_its_positions_only(N, seed, n, bs):
    dl, at = data(N).train, np.random.default_rng(seed).permutation(N)[:n]
    assert drawn(subset(dl, at)) == at.tolist() and (indices(subset(dl, at)) == at).all()
    one = subset(dl, at, bs, seed)
    sizes = [len(b[0]) for b in one]
    assert len(sizes) == len(one) and (len(at) == 1 or 1 not in sizes[-1:] or bs == 1)
    one, two = subset(dl, at, bs, seed), subset(dl, at, bs, seed)
    first, second = drawn(one), drawn(one)
    assert [first, second] == [drawn(two), drawn(two)]
    assert set(first) <= set(at.tolist()) and len(first) == len(at) - leaves_singleton(len(at), bs)

@given(requests())
def test_a_split_divides_the_training_set(asked):
    split = split_of(*asked)
    assert len(split) == len(split.forget) and split.N == len(split.dls.train_ds)
    assert not set(split.forget) & set(split.retain)
    assert sorted([*split.forget, *split.retain]) == list(range(split.N))
    assert (np.diff(split.forget) > 0).all() and (split.y == np.arange(split.N) % 3).all()
    assert set(drawn(split.retain_dls.train)) <= set(split.retain)
    # the order and the form of a request do not change its key; another forget set does
    mask = np.zeros(split.N, dtype=bool)
    mask[split.forget] = True
    for same in (split.forget[::-1], split.forget.tolist(), torch.as_tensor(split.forget), mask, torch.as_tensor(mask)):
        assert ForgetSplit(split.dls, same).key == split.key
    assert ForgetSplit(split.dls, split.retain).key != split.key

@given(requests(), st.data())
def test_a_second_request_cannot_name_forgotten_samples(asked, d):
    split = split_of(*asked)
    assume(len(split.retain) > 1)
    retained = st.sampled_from(split.retain.tolist())
    forget = d.draw(st.lists(retained, min_size=1, max_size=len(split.retain)-1, unique=True))
    later = ForgetSplit(split.retain_dls, forget)
    assert sorted([*later.forget, *later.retain, *split.forget]) == list(range(split.N))
    with pytest.raises(InputError, match='was forgotten before, or never trained on'):
        ForgetSplit(split.retain_dls, [*forget, int(split.forget[0])])

number = st.floats(allow_nan=False, allow_infinity=False)
json_values = number | st.integers() | st.text() | st.booleans()
recipes = st.builds(Recipe, st.sampled_from([small_cnn, cifar_resnet18, mlp]), n_epoch=st.integers(1, 99),
                    lr=st.floats(1e-9, 10), schedule=st.sampled_from(['one_cycle', 'cosine', 'constant']),
                    opt=st.sampled_from(['adamw', 'adam', 'sgd']), seed=seeds,
                    args=st.none() | st.dictionaries(st.text(min_size=1), json_values))
weight, rate = st.floats(0, 1e30), st.floats(1e-30, 1e30) # settings are single precision at most
finetunes = st.builds(FineTune, n_epoch=st.integers(1, 9))
algorithms = st.one_of(st.builds(SCRUB, alpha=weight, gamma=weight, msteps=st.integers(0, 9), lr=rate), finetunes,
                       st.builds(NegGradPlus, st.floats(0, 1)),
                       st.builds(RandomLabel, st.booleans(), st.sampled_from(['once', 'epoch']), st.booleans()))
targets = st.none() | st.just('valid') | st.floats(0, 1)
named_orders = st.sampled_from(['descending', 'ascending', 'interleaved', 'shuffled'])
sequences = st.one_of(
    st.builds(SeqUnlearn, algorithms, divisions.filter(lambda o: o != 'labelled'),
              named_orders | st.permutations(['1', '2', '3']).map(tuple), st.sampled_from(['held out', 'retain']),
              seeds, st.none() | finetunes, st.sampled_from(['each stage', 'whole']),
              st.sampled_from(['fresh', 'kept']),
              targets | st.tuples(targets, targets)),
    st.builds(SeqUnlearn, st.tuples(st.none(), algorithms, algorithms),
              rerank=st.sampled_from([None, Confidence, Random])))
terms = st.builds(Term, st.sampled_from(['forget', 'retain']), weight=st.floats(-1e30, 1e30), T=rate)
all_settings = st.builds(Settings, st.sampled_from(['digits', 'my.data:loaders']), st.text(min_size=1),
                         n=st.none() | st.integers(1, 2**31), lr=st.none() | rate)

@given(recipes | algorithms | sequences | terms | all_settings)
def test_a_value_survives_json(v):
    again = Value.from_json(v.to_json())
    assert again == v and type(again) is type(v) and hash(again) == hash(v) and again.key == v.key
    assert json.loads(v.to_json()) == json.loads(json.dumps(v.to_dict()))
    assert v.replace() == v
    for f in fields(v):
        if isinstance(getattr(v, f.name), bool): assert v.replace(**{f.name: not getattr(v, f.name)}) != v

@given(st.integers(1, 12), st.integers(2, 60), seeds)
def test_halves_are_balanced(pairs, N, seed):
    m = halves(2*pairs, N, seed)
    assert m.shape == (2*pairs, N) and m.dtype == bool
    assert (m[::2] == ~m[1::2]).all() and (m.sum(0) == pairs).all()
    assert (abs(m.sum(1) - N/2) <= .5).all()
    assert (m == halves(2*pairs, N, seed)).all()
    # a larger bank starts with the rows of the smaller one
    assert (halves(2*pairs+2, N, seed)[:2*pairs] == m).all()

def by_scipy(phi, refs, members, online, variance):
    "LiRA sample by sample, as in the paper. Deviations divide by n and are pooled for fewer than two values."
    sets = [[refs[members[:,i] == inside, i] for i in range(len(phi))] for inside in (True, False)]
    def moments(groups):
        # mean and deviation for each sample; the pooled deviation is about the samples' own means
        n, squares = sum(map(len, groups)), sum(((g - g.mean())**2).sum() for g in groups if len(g))
        pooled = np.sqrt(squares/n) if n else np.nan
        for g in groups:
            if not len(g): yield np.nan, np.nan
            else: yield g.mean(), max(pooled if variance == 'global' or len(g) < 2 else g.std(), 1e-6)
    (inside, outside) = (list(moments(g)) for g in sets)
    if not online: return [stats.norm.logcdf(p, *m) for p, m in zip(phi, outside)]
    return [stats.norm.logpdf(p, *a) - stats.norm.logpdf(p, *b) for p, a, b in zip(phi, inside, outside)]

@given(st.integers(1, 6), st.integers(1, 8), seeds, st.booleans(), st.sampled_from(['per_sample', 'global']),
       st.floats(0, 1))
def test_lira_agrees_with_scipy(K, N, seed, online, variance, share_in):
    # random membership: some samples have one reference of a kind, some have none
    rng = np.random.default_rng(seed)
    phi, refs, members = 3*rng.normal(size=N), 3*rng.normal(size=(K, N)), rng.random((K, N)) < share_in
    with np.errstate(all='ignore'): right = np.array(by_scipy(phi, refs, members, online, variance))
    ours = lira(torch.as_tensor(phi), torch.as_tensor(refs), torch.as_tensor(members), online, variance).numpy()
    np.testing.assert_allclose(ours, right, rtol=1e-6, atol=1e-8, equal_nan=True)

@given(st.integers(1, 50), st.integers(2, 12), seeds)
def test_chunks_hold_every_position_once(n, bs, seed):
    at = shuffled(np.arange(n), seed)
    parts = split_in_batches(at, bs)
    assert np.concatenate(parts).tolist() == at.tolist()
    assert len(parts) == max(1, -(-n//bs) - leaves_singleton(n, bs))
    assert all(2 <= len(o) <= bs+1 for o in parts) or n == 1

@given(requests(), st.integers(2, 20), st.integers(2, 20), seeds)
def test_each_pass_over_retain_covers_it_once(asked, bs, bs_forget, seed):
    split = split_of(*asked)
    # the batches of an algorithm that first ascends on the forget set and then descends on the retain set
    how = SCRUB(bs=bs, bs_forget=bs_forget, n_epoch=3, msteps=2)
    stage = how.stages(split)[0]
    roles = dict(forget=stage.forget, retain=stage.retain)
    plan, sizes = how._plan(stage, roles), dict(forget=bs_forget, retain=bs)
    feed = Feed(split.dls.train, roles, sizes, plan, stage.retain, seed)
    epochs = {'forget': [], 'retain': []}
    for feed.epoch in range(3):
        epoch = {'forget': [], 'retain': []}
        for n, b in enumerate(feed):
            (role, (at, same)), = feed.now.items()
            assert same is b and b[0][:,0].long().tolist() == at.tolist()
            epoch[role] += at.tolist()
        assert n+1 == len(feed) == stage.steps[feed.epoch]
        assert sorted(epoch['retain']) == stage.retain.tolist()
        assert sorted(epoch['forget']) == (stage.forget.tolist() if feed.epoch < 2 else [])
        for k in epochs: epochs[k].append(epoch[k])
    # each pass has another order, and the same seed gives the same orders
    if len(stage.retain) > 6: assert epochs['retain'][0] != epochs['retain'][1]
    feed = Feed(split.dls.train, roles, sizes, plan, stage.retain, seed)
    first = [o for _ in feed for at, _ in feed.now.values() for o in at.tolist()]
    assert first == epochs['forget'][0] + epochs['retain'][0]

@given(st.lists(seeds, min_size=1, max_size=4))
def test_derived_seeds_are_valid_and_differ(parts):
    assert derive_seed(*parts) == derive_seed(*parts) and 0 <= derive_seed(*parts) < 2**32
    assert derive_seed(*parts, 0) != derive_seed(*parts, 1)
