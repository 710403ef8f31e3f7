"What must hold for any input, tried on inputs that a machine thinks up."
import json, tempfile
from contextlib import contextmanager
from dataclasses import fields

import numpy as np, pytest, torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from scipy import stats
from rsu.ranking.membership import lira
from rsu.core.data import Order, Samples, loaders, leaves_singleton, shuffled
from rsu.core.indexing import indices, subset
from rsu.core.split import ForgetSplit
from rsu.ranking.rankers import Confidence, Random, Ranking
from rsu.core.recipe import Recipe, cifar_resnet18, derive_seed, mlp, small_cnn
from rsu.ranking.bank import halves
from rsu.app.settings import Settings
from rsu.sequence.sequence import ByChance, ByClass, Groups, Labelled, NaturalBreaks, Quantiles, SeqUnlearn, Singly, Thresholds, share
from rsu.algorithms.ascent import NegGradPlus, RandomLabel
from rsu.algorithms.teacher import DELETE, BadTeacher, SCRUB
from rsu.algorithms.feed import Feed, split_in_batches
from rsu.algorithms.base import FineTune, Term
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError, Value

# The same inputs in every run, so that a test that fails fails again. No deadline: the first example pays for imports.
settings.register_profile('rsu', max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('rsu')

seeds = st.integers(0, 2**32-1)

def data(N, seed=0, classes=3):
    "Loaders over `N` training samples whose first column is the sample's position."
    def part(n):
        x = torch.zeros(n, 2)
        x[:,0] = torch.arange(n)
        return Samples(x, torch.arange(n) % classes, vocab=range(classes))
    return loaders(part(N), part(6), part(6), bs=8, device='cpu')

# What is asked for, as plain numbers: fastai's loaders draw on Python's generator, which hypothesis keeps for itself.
@st.composite
def requests(draw, most=120):
    "The size of a training set, and positions in it that leave something."
    N = draw(st.integers(2, most))
    return N, draw(st.permutations(range(N)))[:draw(st.integers(1, N-1))]

@st.composite
def scored(draw, most=120):
    "A request and a score for each sample, with ties among them."
    N, at = draw(requests(most))
    return N, at, draw(st.lists(st.integers(-3, 3), min_size=len(at), max_size=len(at)))

def split_of(N, at): return ForgetSplit(data(N), at)

@given(st.lists(st.integers(0, 500), min_size=1, max_size=12).filter(sum), st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_share_sums_to_the_step(total, sizes):
    parts = share(total, sizes)
    assert len(parts) == len(sizes) and all(len(o) == len(total) for o in parts)
    assert sum(map(sum, parts)) == sum(total) and min(map(min, parts)) >= 0
    # in every epoch too, to the step's half at either end of each part; and each stage has its part by size
    for n, part in zip(sizes, parts): assert abs(sum(part) - sum(total)*n/sum(sizes)) <= 1
    for part in parts:
        for e, n in enumerate(part): assert abs(n - sum(part)*total[e]/sum(total)) <= 1

@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_share_of_a_single_group_is_all(total): assert share(total, [17]) == [total]

orders = st.sampled_from(['descending', 'ascending', 'interleaved', 'shuffled', 'given'])
divisions = st.one_of(st.integers(1, 8), st.builds(Quantiles, st.integers(1, 8)), st.builds(NaturalBreaks, st.integers(1, 4)), st.just(ByClass()), st.just(Singly()), st.builds(ByChance, st.integers(1, 8), st.integers(0, 99)),
                      st.lists(st.integers(-3, 3), min_size=1, max_size=4, unique=True).map(lambda o: Thresholds(tuple(sorted(o, reverse=True)))), st.just('labelled'))

def sequence_of(ranking, groups, order, seed, algorithm, **kwargs):
    "A sequence on that ranking; labels and an order of one's own are drawn by the seed."
    rng = np.random.default_rng(seed)
    if groups == 'labelled': groups = Labelled(rng.choice(['a', 'b', 'c'], len(ranking)).tolist())
    names = list((Quantiles(groups) if isinstance(groups, int) else groups).divide(ranking))
    return SeqUnlearn(algorithm, groups, tuple(rng.permutation(names).tolist()) if order == 'given' else order, seed=seed, **kwargs)

@contextmanager
def only_what_can_be_divided():
    "Take another example where the samples are too few for the groups that were drawn"
    try: yield
    except InputError as e:
        assert 'cannot be made of' in str(e) or 'too few' in str(e)
        assume(False)

@given(scored(), divisions, orders, st.sampled_from(['held out', 'retain']), seeds)
def test_stages_partition_the_forget_set(asked, groups, order, pending, seed):
    *request, scores = asked
    ranking = Ranking.from_scores(split_of(*request), scores)
    # small batches, so that there are steps enough for every group
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
    # the groups are told most exposed first, and the order is kept to
    told = list((how.groups if isinstance(how.groups, Groups) else Quantiles(how.groups)).divide(ranking))
    mean = {s.name: np.mean([scores[o] for o in s.forget]) for s in stages}
    assert isinstance(groups, ByChance) or all(mean[a] >= mean[b] - 1e-12 for a, b in zip(told, told[1:]))
    names = [s.name for s in stages]
    assert sorted(names) == sorted(told)
    if order in ('descending', 'ascending'): assert names == (told if order == 'descending' else told[::-1])
    if order == 'given': assert names == list(how.order)
    if isinstance(groups, int):
        sizes = [len(s.forget) for s in stages]
        assert len(stages) == groups and max(sizes) - min(sizes) <= 1
    assert [s.name for s in how.stages(ranking)] == names
    assert sum(sum(s.steps) for s in stages) == sum(algorithm.budget(ranking))

class Watch(Callback):
    "What each stage was fed"
    run_valid = False
    def __init__(self): self.fits = []
    def before_fit(self): self.fits.append(dict(forget=set(), retain=set(), mixed=set()))
    def before_batch(self):
        for role, (at, _) in self.learn.dls.train.now.items(): self.fits[-1][role] |= set(at.tolist())

class Trip(Callback):
    "Interrupts a run at its `at`th step"
    run_valid = False
    def __init__(self, at): self.at = at
    def after_batch(self):
        self.at -= 1
        if self.at < 0: raise KeyboardInterrupt

def alike(a, b): return all(torch.equal(p, q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()))

def small(N):
    torch.manual_seed(0)
    dls = data(N)
    return Learner(dls, torch.nn.Linear(2, 3), loss_func=CrossEntropyLossFlat()), dls

@given(scored(50), divisions, orders, st.sampled_from(['held out', 'retain']), st.sampled_from([FineTune(), NegGradPlus(), RandomLabel(), RandomLabel(joint=True), SCRUB(), BadTeacher(), DELETE()]), st.booleans(), seeds, st.integers(0, 99))
def test_a_sequence_keeps_its_word(asked, groups, order, pending, algorithm, whole, seed, at):
    N, *request, scores = asked
    learn, dls = small(N)
    ranking = Ranking.from_scores(ForgetSplit(dls, *request), scores)
    algorithm = algorithm.replace(n_epoch=3, bs=2, lr=1e-5)
    with only_what_can_be_divided():
        how = sequence_of(ranking, groups, order, seed, algorithm, pending=pending,
                          repair=FineTune(n_epoch=1, bs=8, lr=1e-5), schedule='whole' if whole else 'each stage',
                          optimiser='kept' if whole else 'fresh')
        how.stages(ranking)
    watch = Watch()
    new = unlearn(learn, ranking, how, seed=seed, cbs=watch, quiet=True)
    # observed on the batches: each sample's turn comes once, and none comes back as retained; the steps are those of one shot
    done, asked = set(), set(ranking.forget.tolist())
    for fit, group in zip(watch.fits, [*new.unlearning.groups.values(), []] if new.unlearning.groups else [ranking.forget]):
        group, fed = set(np.asarray(group).tolist()), set.union(*fit.values())
        if group and not isinstance(algorithm, FineTune): assert group <= fit['forget'] | fit['mixed'] # and none is left out
        assert fit['forget'] <= group and not fed & done and not fit['retain'] & group
        if pending == 'held out': assert fed & asked <= group
        done |= group
    assert done == asked
    repair = sum(how.repair.budget(ranking))
    assert new.unlearning.steps - repair == sum(algorithm.budget(ranking)) == unlearn(learn, ranking, algorithm, quiet=True).unlearning.steps
    # killed at any step and taken up again; and the same value and seed once more
    with tempfile.TemporaryDirectory() as d:
        try: unlearn(learn, ranking, how, seed=seed, cbs=Trip(at % new.unlearning.steps), path=d, quiet=True); assert False
        except KeyboardInterrupt: pass
        assert alike(unlearn(learn, ranking, SeqUnlearn.from_json(how.to_json()), seed=seed, path=d, quiet=True), new)
    # one group, in whatever order and way, is one shot is the algorithm alone
    bare = unlearn(learn, ranking, algorithm, seed=seed, quiet=True)
    assert alike(bare, unlearn(learn, ranking, how.replace(groups=1, repair=None, order='descending' if order == 'given' else order), seed=seed, quiet=True))
    assert alike(bare, unlearn(learn, ForgetSplit(dls, *request), SeqUnlearn(algorithm, 1), seed=seed, quiet=True))

@given(st.integers(1, 60), seeds, st.integers(2, 9))
def test_order_is_determined_by_its_seed(n, seed, bs):
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
def test_subset_draws_its_positions(N, seed, n, bs):
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
def test_a_split_keeps_its_word(asked):
    split = split_of(*asked)
    assert len(split) == len(split.forget) and split.N == len(split.dls.train_ds)
    assert not set(split.forget) & set(split.retain)
    assert sorted([*split.forget, *split.retain]) == list(range(split.N))
    assert (np.diff(split.forget) > 0).all() and (split.y == np.arange(split.N) % 3).all()
    assert set(drawn(split.retain_dls.train)) <= set(split.retain)
    # the order in which it is asked for and the form of the question make no difference; another forget set does
    mask = np.zeros(split.N, dtype=bool)
    mask[split.forget] = True
    for same in (split.forget[::-1], split.forget.tolist(), torch.as_tensor(split.forget), mask, torch.as_tensor(mask)):
        assert ForgetSplit(split.dls, same).key == split.key
    assert ForgetSplit(split.dls, split.retain).key != split.key

@given(requests(), st.data())
def test_a_second_request(asked, d):
    split = split_of(*asked)
    # what was forgotten is not there to be forgotten again, nor does it come back as retained
    assume(len(split.retain) > 1)
    ask = d.draw(st.lists(st.sampled_from(split.retain.tolist()), min_size=1, max_size=len(split.retain)-1, unique=True))
    later = ForgetSplit(split.retain_dls, ask)
    assert sorted([*later.forget, *later.retain, *split.forget]) == list(range(split.N))
    with pytest.raises(InputError, match='was forgotten before, or never trained on'):
        ForgetSplit(split.retain_dls, [*ask, int(split.forget[0])])

number = st.floats(allow_nan=False, allow_infinity=False)
recipes = st.builds(Recipe, st.sampled_from([small_cnn, cifar_resnet18, mlp]), n_epoch=st.integers(1, 99), lr=st.floats(1e-9, 10),
                    schedule=st.sampled_from(['one_cycle', 'cosine', 'constant']), opt=st.sampled_from(['adamw', 'adam', 'sgd']), seed=seeds,
                    args=st.none() | st.dictionaries(st.text(min_size=1), number | st.integers() | st.text() | st.booleans()))
weight, rate = st.floats(0, 1e30), st.floats(1e-30, 1e30) # settings are single precision at most
algorithms = st.one_of(st.builds(SCRUB, alpha=weight, gamma=weight, msteps=st.integers(0, 9), lr=rate), st.builds(FineTune, n_epoch=st.integers(1, 9)),
                       st.builds(NegGradPlus, st.floats(0, 1)), st.builds(RandomLabel, st.booleans(), st.sampled_from(['once', 'epoch']), st.booleans()))
targets = st.none() | st.just('valid') | st.floats(0, 1)
sequences = st.one_of(st.builds(SeqUnlearn, algorithms, divisions.filter(lambda o: o != 'labelled'), st.sampled_from(['descending', 'ascending', 'interleaved', 'shuffled']) | st.permutations(['1', '2', '3']).map(tuple),
                                st.sampled_from(['held out', 'retain']), seeds, st.none() | st.builds(FineTune, n_epoch=st.integers(1, 9)), st.sampled_from(['each stage', 'whole']), st.sampled_from(['fresh', 'kept']), targets | st.tuples(targets, targets)),
                      st.builds(SeqUnlearn, st.tuples(st.none(), algorithms, algorithms), rerank=st.sampled_from([None, Confidence, Random])))
terms = st.builds(Term, st.sampled_from(['forget', 'retain']), weight=st.floats(-1e30, 1e30), T=rate)
all_settings = st.builds(Settings, st.sampled_from(['digits', 'my.data:loaders']), st.text(min_size=1),
                         n=st.none() | st.integers(1, 2**31), lr=st.none() | rate)

@given(recipes | algorithms | sequences | terms | all_settings)
def test_a_value_travels_as_json(v):
    again = Value.from_json(v.to_json())
    assert again == v and type(again) is type(v) and hash(again) == hash(v) and again.key == v.key
    assert json.loads(v.to_json()) == json.loads(json.dumps(v.to_dict()))
    assert v.replace() == v
    # a change of any one field is told apart
    for f in fields(v):
        if isinstance(getattr(v, f.name), bool): assert v.replace(**{f.name: not getattr(v, f.name)}) != v

@given(st.integers(1, 12), st.integers(2, 60), seeds)
def test_halves_are_balanced(pairs, N, seed):
    m = halves(2*pairs, N, seed)
    assert m.shape == (2*pairs, N) and m.dtype == bool
    assert (m[::2] == ~m[1::2]).all() and (m.sum(0) == pairs).all()
    assert (abs(m.sum(1) - N/2) <= .5).all()
    assert (m == halves(2*pairs, N, seed)).all()
    # a larger bank begins as the smaller one
    assert (halves(2*pairs+2, N, seed)[:2*pairs] == m).all()

def by_scipy(phi, refs, members, online, variance):
    "LiRA sample by sample, in the words of the paper; deviations by n, pooled where a sample has fewer than two."
    sets = [[refs[members[:,i] == inside, i] for i in range(len(phi))] for inside in (True, False)]
    def moments(groups):
        # the moments of one kind, the pooled deviation being that about each sample's own mean
        pooled = np.sqrt(sum(((g - g.mean())**2).sum() for g in groups if len(g)) / sum(map(len, groups))) if sum(map(len, groups)) else np.nan
        for g in groups:
            if not len(g): yield np.nan, np.nan
            else: yield g.mean(), max(pooled if variance == 'global' or len(g) < 2 else g.std(), 1e-6)
    (inside, outside) = (list(moments(g)) for g in sets)
    if not online: return [stats.norm.logcdf(p, *m) for p, m in zip(phi, outside)]
    return [stats.norm.logpdf(p, *a) - stats.norm.logpdf(p, *b) for p, a, b in zip(phi, inside, outside)]

@given(st.integers(1, 6), st.integers(1, 8), seeds, st.booleans(), st.sampled_from(['per_sample', 'global']), st.floats(0, 1))
def test_lira_agrees_with_scipy(K, N, seed, online, variance, share_in):
    # memberships by chance: samples with one reference of a kind, and with none, are among them
    rng = np.random.default_rng(seed)
    phi, refs, members = 3*rng.normal(size=N), 3*rng.normal(size=(K, N)), rng.random((K, N)) < share_in
    with np.errstate(all='ignore'): right = np.array(by_scipy(phi, refs, members, online, variance))
    ours = lira(torch.as_tensor(phi), torch.as_tensor(refs), torch.as_tensor(members), online, variance).numpy()
    np.testing.assert_allclose(ours, right, rtol=1e-6, atol=1e-8, equal_nan=True)

@given(st.integers(1, 50), st.integers(2, 12), seeds)
def test_chunks_hold_every_position_once(n, bs, seed):
    at = shuffled(np.arange(n), seed)
    parts = split_in_batches(at, bs)
    assert np.concatenate(parts).tolist() == at.tolist() and len(parts) == max(1, -(-n//bs) - leaves_singleton(n, bs))
    assert all(2 <= len(o) <= bs+1 for o in parts) or n == 1

@given(requests(), st.integers(2, 20), st.integers(2, 20), seeds)
def test_each_pass_over_retain_covers_it_once(asked, bs, bs_forget, seed):
    split = split_of(*asked)
    # what the fit is fed, by the plan of an algorithm that first ascends on forget and then descends on retain
    how = SCRUB(bs=bs, bs_forget=bs_forget, n_epoch=3, msteps=2)
    stage = how.stages(split)[0]
    roles = dict(forget=stage.forget, retain=stage.retain)
    feed = Feed(split.dls.train, roles, dict(forget=bs_forget, retain=bs), how._plan(stage, roles), stage.retain, seed)
    seen = {'forget': [], 'retain': []}
    for feed.epoch in range(3):
        epoch = {'forget': [], 'retain': []}
        for n, b in enumerate(feed):
            (role, (at, same)), = feed.now.items()
            assert same is b and b[0][:,0].long().tolist() == at.tolist()
            epoch[role] += at.tolist()
        assert n+1 == len(feed) == stage.steps[feed.epoch]
        assert sorted(epoch['retain']) == stage.retain.tolist()
        assert sorted(epoch['forget']) == (stage.forget.tolist() if feed.epoch < 2 else [])
        for k in seen: seen[k].append(epoch[k])
    # shuffled anew at every pass, and the same again by the same seed
    if len(stage.retain) > 6: assert seen['retain'][0] != seen['retain'][1]
    feed = Feed(split.dls.train, roles, dict(forget=bs_forget, retain=bs), how._plan(stage, roles), stage.retain, seed)
    assert [o for _ in feed for at, _ in feed.now.values() for o in at.tolist()] == seen['forget'][0] + seen['retain'][0]

@given(st.lists(seeds, min_size=1, max_size=4))
def test_derived_seeds_are_seeds(parts):
    assert derive_seed(*parts) == derive_seed(*parts) and 0 <= derive_seed(*parts) < 2**32
    assert derive_seed(*parts, 0) != derive_seed(*parts, 1)
