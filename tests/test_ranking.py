"Properties of attack statistics and rankings for any scores; and rankers on other kinds of models and loaders."
import copy

import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from scipy import stats
from torch import nn
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import set_seed
from rsu.core.outputs import margin, predict_train
from rsu.ranking.membership import (attack_p, attack_r, bavaria, entropy, informia, lira, memorization,
                                    modified_entropy, precision_at_prior, precision_at_top, privacy_risk, rates_above,
                                    rmia, threshold_at_fpr, top_overlap, tpr_at_fpr)
from rsu.core.data import Samples, loaders
from rsu.core.datasets import breast_cancer, digits
from rsu.core.split import ForgetSplit
from rsu.ranking.rankers import (AttackR, BaVarIA, Confidence, Curvature, EL2N, Entanglement, Entropy,
                                 ForgettingEvents, GradNorm, HoldoutRetrain, InfoRMIA, LearningSpeed, LiRA,
                                 LossTraceIQR, Memorization, ModifiedEntropy, PrivacyRisk, QMIA, Random, Ranker,
                                 Ranking, Record, RMIA, ranker_table)
from rsu.ranking.gradients import PerInstancePrivacy, SelfInfluence
from rsu.core.recipe import Recipe, mlp, small_cnn
from rsu.ranking.bank import ReferenceBank
from rsu.core.config import InputError


seeds = st.integers(0, 2**32-1)
sizes = st.tuples(st.integers(2, 9), st.integers(1, 20)) # references and samples

def worlds(seed, K, N):
    "Margins of a model and of references, some of them infinite, and the membership matrix"
    r = np.random.default_rng(seed)
    phi, refs = r.normal(0, 5, N), r.normal(0, 5, (K,N))
    refs[r.random((K,N)) < .1] = np.inf
    refs[r.random((K,N)) < .1] = -np.inf
    return phi, refs, r.random((K,N)) < .5

statistics = dict(
    online=lira,
    offline=lambda phi, refs, m: lira(phi, refs, m, online=False),
    pooled=lambda phi, refs, m: lira(phi, refs, m, variance='global'),
    risk=lambda phi, refs, m: privacy_risk(refs, m),
    attack_r=attack_r,
    memorization=lambda phi, refs, m: memorization(torch.as_tensor(refs).sigmoid(), m))

with_a_prior = dict(bavaria=bavaria, bavaria_offline=lambda phi, refs, m: bavaria(phi, refs, m, online=False))
every = {**statistics, **with_a_prior}

@pytest.mark.parametrize('f', every.values(), ids=every.keys())
@given(seeds, sizes)
def test_the_order_of_references_and_of_samples_does_not_matter(f, seed, size):
    phi, refs, m = worlds(seed, *size)
    want, r = f(phi, refs, m), np.random.default_rng(seed)
    k, i = r.permutation(size[0]), r.permutation(size[1])
    torch.testing.assert_close(f(phi, refs[k], m[k]), want, equal_nan=True)
    torch.testing.assert_close(f(phi[i], refs[:,i], m[:,i]), want[i], equal_nan=True)

@pytest.mark.parametrize('f', statistics.values(), ids=statistics.keys())
@given(seeds, sizes)
def test_a_statistic_is_nan_only_where_references_are_missing(f, seed, size):
    phi, refs, m = worlds(seed, *size)
    none, all_ = ~m.any(0), m.all(0)
    lacking = all_ if f in (statistics['offline'], attack_r) else none | all_
    assert torch.isnan(f(phi, refs, m)).numpy().tolist() == lacking.tolist()

@given(seeds, st.integers(1, 30), st.integers(1, 30), st.integers(1, 6), st.floats(0, 1), st.floats(.1, 4))
def test_rmia_is_the_count_over_all_pairs(seed, N, M, K, a, gamma):
    r = np.random.default_rng(seed)
    # few values, so that there are ties and exact zeros and ones
    p, refs, q, q_refs = (r.integers(0, 5, o)/4 for o in (N, (K,N), M, (K,M)))
    tiny = np.finfo(float).tiny
    x = (p+tiny) / (((1+a)*refs.mean(0) + (1-a))/2 + tiny)
    z = (q+tiny) / (((1+a)*q_refs.mean(0) + (1-a))/2 + tiny)
    got = rmia(p, refs, np.zeros((K,N), bool), q, q_refs, a, gamma).numpy()
    np.testing.assert_allclose(got, (x[:,None] > gamma*z).mean(1))

@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_attack_p_is_the_count_over_all_pairs(loss, pop):
    np.testing.assert_allclose(attack_p(loss, pop).numpy(), (np.array(pop)[None] > np.array(loss)[:,None]).mean(1))

@given(seeds, st.integers(2, 6))
def test_one_hot_probabilities_give_finite_values(seed, C):
    r = np.random.default_rng(seed)
    p, y = torch.eye(C)[r.integers(0, C, 10)], torch.as_tensor(r.integers(0, C, 10))
    right = p.argmax(1) == y
    phi = margin(p.log(), y)
    assert (phi[right] > 103).all() and (phi[~right] < -103).all() and phi.isfinite().all()
    assert (entropy(p) == 0).all() and (modified_entropy(p, y)[right] == 0).all()
    assert modified_entropy(p, y).isfinite().all() and (modified_entropy(p, y)[~right] > 100).all()

@pytest.mark.parametrize('name', with_a_prior)
@given(seeds, sizes)
def test_a_prior_gives_every_sample_a_finite_score(name, seed, size):
    phi, refs, m = worlds(seed, *size)
    exists = not m.all() and (name == 'bavaria_offline' or m.any()) # one margin of the kind, of any sample
    assert with_a_prior[name](phi, refs, m).isfinite().all() == exists

@given(seeds, st.floats(-50, 50), st.floats(.1, 10))
def test_bavaria_does_not_depend_on_the_unit_of_the_margins(seed, shift, scale):
    r = np.random.default_rng(seed)
    phi, refs, m = r.normal(0, 3, 12), r.normal(0, 3, (6,12)) + r.normal(0, 3, 12), r.random((6,12)) < .5
    m[:2,0], m[2:4,0] = True, False # one sample with two margins of both kinds, so that variances can be estimated
    for f in with_a_prior.values():
        torch.testing.assert_close(f(scale*phi+shift, scale*refs+shift, m), f(phi, refs, m), rtol=1e-5, atol=1e-5)

def test_a_higher_margin_is_more_evidence_under_the_tail_of_bavaria():
    r = np.random.default_rng(0)
    refs, m = r.normal(0, 1, (8,400)), np.tile(np.arange(8)[:,None] < 4, 400)
    scores = bavaria(np.linspace(-20, 20, 400), np.repeat(refs[:,:1], 400, 1), m, online=False)
    assert (scores.diff() > 0).all() and (scores < 0).all()

@given(seeds, st.integers(1, 30), st.integers(1, 6), st.floats(0, 1))
def test_informia_orders_the_samples_of_one_model_as_rmia_does(seed, M, K, a):
    r = np.random.default_rng(seed)
    p, refs, q, q_refs = (r.random(o) for o in (20, (K,20), M, (K,M)))
    args = p, refs, np.zeros((K,20), bool), q, q_refs, a
    share, mean = rmia(*args), informia(*args)
    assert (share[mean.argsort()].diff() >= 0).all()

# The worth of an attack

scores_of = st.lists(st.integers(0, 9), min_size=1, max_size=40)

@given(scores_of, scores_of, st.floats(.01, 1))
def test_the_oracle_threshold_gives_the_rates_of_tpr_at_fpr(members, others, fpr):
    threshold = threshold_at_fpr(others, fpr)
    tpr, realised = rates_above(members, others, threshold)
    if len(others)*fpr < 1: assert np.isnan([threshold, tpr, realised, tpr_at_fpr(members, others, fpr)]).all()
    else: assert realised <= fpr + 1e-9 and (fpr == 1 or abs(tpr - tpr_at_fpr(members, others, fpr)) < 1e-12)

@given(scores_of, scores_of, st.floats(.01, 1), st.integers(0, 99))
def test_precision_at_the_top_is_the_mean_over_random_orders_of_ties(members, others, share, seed):
    value, scores = np.r_[np.ones(len(members)), np.zeros(len(others))], np.r_[members, others]
    k, r, found = max(1, round(share*len(scores))), np.random.default_rng(seed), []
    for _ in range(300):
        mix = r.permutation(len(scores))
        found.append(value[mix][np.argsort(-scores[mix], kind='stable')[:k]].mean())
    assert abs(precision_at_top(members, others, share) - np.mean(found)) < .15
    assert abs(precision_at_top(members, others, 1) - value.mean()) < 1e-12

def test_precision_at_a_prior_is_the_share_in_a_sample_of_that_prior():
    r = np.random.default_rng(0)
    member = r.random(200_000) < .1
    found = r.random(200_000) < np.where(member, .4, .02)
    assert abs(precision_at_prior(.4, .02, .1) - member[found].mean()) < .01

def test_the_overlap_counts_only_samples_that_both_runs_have():
    scores = np.array([[9., 8, np.nan, 1, 0], [9, np.nan, 8, 1, 0]])
    assert top_overlap(scores, 1/3) == 1. # samples 0, 3 and 4; the top of both is 0
    assert top_overlap([[1., 2, 3, 4], [4, 3, 2, 1]], .5) == 0.

# Rankings

dls = loaders(*[Samples(torch.arange(40.)[:,None], torch.arange(40) % 2)]*3, bs=8, device='cpu')

def ranking(scores, name='one'): return Ranking.from_scores(ForgetSplit(dls, np.arange(len(scores))), scores, name)

@st.composite
def pairs(draw):
    n = draw(st.integers(5, 30))
    some = st.lists(st.integers(-3, 3), min_size=n, max_size=n)
    return draw(some), draw(some)

@given(pairs())
def test_agreement_equals_scipy_and_is_symmetric_except_in_the_top_fifth(ab):
    a, b = map(ranking, ab)
    one, two = a.agreement(b, n_boot=1), b.agreement(a, n_boot=1)
    if len(set(ab[0])) > 1 and len(set(ab[1])) > 1: assert abs(one.value['spearman'] - stats.spearmanr(*ab)[0]) < 1e-9
    np.testing.assert_allclose(one.value.iloc[:2], two.value.iloc[:2], equal_nan=True)
    k = max(1, len(a)//10)
    assert abs(one.value['top-k overlap'] - len(np.intersect1d(a.top(k), b.top(k)))/k) < 1e-9
    top = np.isin(a.forget, a.top(max(2, len(a)//5)))
    x, y = np.array(ab[0])[top], np.array(ab[1])[top]
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert abs(one.value['spearman in the top fifth'] - stats.spearmanr(x, y)[0]) < 1e-9

@given(pairs(), st.floats(.1, 9))
def test_only_the_order_of_scores_counts(ab, scale):
    a, b = map(ranking, ab)
    other = ranking(np.exp(np.array(ab[0])*scale/9))
    assert a.agreement(b, n_boot=20).equals(other.agreement(b, n_boot=20))
    assert (a.order == other.order).all()

@given(pairs())
def test_combining_keeps_pairs_on_which_all_agree(ab):
    a, b = map(ranking, ab)
    both = Ranking.combine([a, b])
    assert (Ranking.combine([b, a]).scores == both.scores).all()
    assert (Ranking.combine([a]).order == a.order).all()
    over = (a.scores[:,None] > a.scores) & (b.scores[:,None] > b.scores)
    assert (both.scores[:,None] > both.scores)[over].all()

@given(pairs())
def test_ties_are_ordered_by_position(ab):
    a = ranking(ab[0])
    assert a.order.tolist() == sorted(a.forget.tolist(), key=lambda i: (-a.scores[i], i))

def test_the_interval_of_an_agreement_has_its_nominal_coverage():
    rho, inside, r = .6, 0, np.random.default_rng(0)
    many = loaders(*[Samples(torch.zeros(200, 1), torch.arange(200) % 2)]*3, bs=8, device='cpu')
    split = ForgetSplit(many, np.arange(199))
    truth = 6/np.pi*np.arcsin(rho/2) # Spearman's correlation of two normals
    for s in range(100):
        x = r.normal(size=199)
        a, b = (Ranking.from_scores(split, o) for o in (x, rho*x + (1-rho**2)**.5*r.normal(size=199)))
        low, high = a.agreement(b, n_boot=200, seed=s).loc['spearman', ['low','high']]
        inside += low < truth < high
    assert 88 <= inside <= 99

def test_bad_arguments_are_refused():
    a = ranking([1,2,3])
    for f, words in [(lambda: a.agreement(ranking([1,2])), 'rank different samples'),
                     (lambda: a.agreement(a, k=4), 'give a number from 1 to 3'),
                     (lambda: a.agreement(a, n_boot=0), 'n_boot=0 must be a whole number in .1, inf.'),
                     (lambda: Ranking.combine([]), 'There is no ranking to combine'),
                     (lambda: Ranking.combine([a, ranking([1,2])]), 'rank different samples')]:
        with pytest.raises(InputError, match=words): f()

# Rankers on other models

def model_rankers():
    return [Confidence(), Entropy(), ModifiedEntropy(), GradNorm(), Curvature(), Entanglement(),
            HoldoutRetrain(n_epoch=1), QMIA(), SelfInfluence()]

@pytest.fixture(scope='module')
def table():
    record = Record()
    learn = Recipe(mlp, n_epoch=3, args=dict(c_out=2)).fit(breast_cancer(), quiet=True, cbs=record)
    return learn, record

@pytest.fixture(scope='module')
def bank(table, tmp_path_factory):
    return ReferenceBank.fit(table[0], n=4, path=tmp_path_factory.mktemp('bank'), quiet=True)

record_rankers = LearningSpeed, ForgettingEvents, EL2N, LossTraceIQR, PerInstancePrivacy

def all_rankers(table, bank):
    learn, record = table
    return [*model_rankers(), *(o(record) for o in record_rankers),
            *(o(bank) for o in (LiRA, BaVarIA, PrivacyRisk, RMIA, InfoRMIA, AttackR, Memorization)), Random()]

def test_no_ranker_changes_the_learner(table, bank):
    learn, at = table[0], np.array([400, 3, 17, 5])
    learn.model.train()
    learn.model[0].eval()
    state, modes = copy.deepcopy(learn.model.state_dict()), [m.training for m in learn.model.modules()]
    own, chance = learn.__dict__.copy(), (torch.get_rng_state(), np.random.get_state()[1].copy())
    everyone = all_rankers(table, bank)
    assert {type(r).__name__ for r in everyone} >= set(ranker_table().index) - {'UnlearnProbe'}
    for r in everyone:
        scores = r.score(learn, at)
        assert scores.shape == (4,) and np.isfinite(scores).all(), r.name
        # a score does not depend on the order and on the other samples of the call
        np.testing.assert_allclose(r.score(learn, at[::-1]), scores[::-1], rtol=1e-3, atol=1e-6, err_msg=r.name)
        np.testing.assert_allclose(r.score(learn, at[:1]), scores[:1], rtol=1e-3, atol=1e-6, err_msg=r.name)
        for k, v in learn.model.state_dict().items(): assert torch.equal(v, state[k]), r.name
        assert [m.training for m in learn.model.modules()] == modes, r.name
        assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters()), r.name
        assert learn.__dict__.keys() == own.keys() and all(learn.__dict__[k] is v for k, v in own.items()), r.name
        assert torch.equal(torch.get_rng_state(), chance[0]), r.name
        assert (np.random.get_state()[1] == chance[1]).all(), r.name

class TwoInputs(nn.Module):
    "As fastai's tabular models: whole numbers and floats"
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.head = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Dropout(.5), nn.Linear(4, 2))
    def forward(self, cat, cont): return self.head(torch.cat([self.emb(cat[:,0]), cont], 1))

def test_rankers_work_on_two_inputs_one_of_them_integer():
    from fastai.data.core import DataLoaders
    from torch.utils.data import TensorDataset
    from rsu.core.data import IndexLoader
    def part(n): return TensorDataset(torch.arange(n)[:,None] % 5, torch.randn(n, 2), torch.arange(n) % 2)
    two = DataLoaders(*(IndexLoader(part(30), bs=8, device=torch.device('cpu')) for _ in range(3)))
    learn = Learner(two, TwoInputs(), nn.CrossEntropyLoss())
    for r in model_rankers():
        if isinstance(r, Curvature):
            with pytest.raises(InputError, match='whole numbers'): r.score(learn, np.arange(4))
        else: assert np.isfinite(r.score(learn, np.arange(4))).all(), r.name

def test_entanglement_needs_a_linear_layer():
    net = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    learn = Learner(digits(n=40), net)
    with pytest.raises(InputError, match='no linear layer'): Entanglement().score(learn, np.arange(3))
    assert np.isfinite(GradNorm().score(learn, np.arange(3))).all()

def test_a_record_does_not_change_the_fit():
    a, b = (Recipe(small_cnn, n_epoch=2).fit(digits(n=200), quiet=True, cbs=cbs) for cbs in (None, Record()))
    for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(p, q)

def dropout_learner(cbs):
    "A learner with dropout, which draws from the global generator, after two epochs"
    set_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(.5), nn.Linear(32, 10))
    learn = Learner(digits(n=200), net, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2)
    return learn

def test_a_record_does_not_change_a_fit_without_seeded_steps():
    a, b = dropout_learner([]), dropout_learner(Record())
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)

class Interrupt(Callback):
    def before_batch(self):
        if self.epoch == 1 and self.training: raise KeyboardInterrupt

@pytest.mark.filterwarnings('ignore:numpy.core:DeprecationWarning') # of fastai's LRFinder
def test_the_rows_of_a_record():
    record = Record()
    learn = dropout_learner(record)
    torch.testing.assert_close(record.phi[-1], margin(*predict_train(learn.model, learn.dls)))
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(3, cbs=Interrupt()) # completes one epoch
        assert len(record.rows) == 3
        learn.lr_find(show_plot=False, num_it=2, suggest_funcs=None)
    assert len(record.rows) == 3
    Recipe(mlp, n_epoch=1).fit(breast_cancer(), quiet=True, cbs=record) # another model starts a new record
    assert record.phi.shape == (1,411)

weights = torch.arange(1., 11)

class Scaled(nn.Module):
    "Divides the logits of its linear layer, in place"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, x): return self.net(x).div_(2)

class OtherLoss(Callback):
    "Replaces the loss function during each epoch, as fastai's MixUp does"
    order = 0
    def before_train(self): self.own, self.learn.loss_func = self.loss_func, lambda out, y: 100*self.own(out, y)
    def before_validate(self): self.learn.loss_func = self.own

def by_backward(learn, i, params):
    "The norm of the gradient of one sample's loss, by a backward pass"
    learn.model.eval()
    x, y = (o[[i]] for o in learn.dls.train_ds.tensors)
    loss = nn.functional.cross_entropy(learn.model(x), y, learn.loss_func.weight, reduction='none',
                                       label_smoothing=learn.loss_func.label_smoothing)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), params)]).norm()

@pytest.mark.parametrize('loss', [dict(), dict(weight=weights), dict(weight=weights, label_smoothing=.2)], ids=str)
@pytest.mark.parametrize('bias', [True, False])
def test_recorded_norms_are_those_of_backward_passes(loss, bias):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10, bias=bias))
    net[1].bias.requires_grad_(False) # the gradient of a frozen parameter does not count
    records = [Record(), Record('network')]
    learn = Learner(digits(n=100), net, nn.CrossEntropyLoss(**loss), cbs=[*records, OtherLoss()])
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    for record, params in zip(records, ([*net[3].parameters()], [p for p in net.parameters() if p.requires_grad])):
        want = torch.stack([by_backward(learn, i, params) for i in range(5)])
        torch.testing.assert_close(record.grad_norms[-1,:5], want, rtol=1e-4, atol=1e-6)

def weighted_by_batch(out, y): return nn.functional.cross_entropy(out, y, weights)

@pytest.mark.parametrize('net, loss', [
    (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), nn.CrossEntropyLoss()), # no linear layer
    (Scaled(), nn.CrossEntropyLoss()),
    (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), weighted_by_batch)], ids=['convolution','scaled','batch loss'])
def test_other_rankers_read_a_record_without_gradients(net, loss):
    record = Record()
    learn = Learner(digits(n=60), net, loss, cbs=record)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    for ranker in record_rankers[:-1]: assert np.isfinite(ranker(record).score(learn, np.arange(9))).all()
    with pytest.raises(InputError, match='record those of the whole network'):
        PerInstancePrivacy(record).score(learn, np.arange(9))

def test_a_record_of_the_whole_network_refuses_a_loss_without_samples_before_the_training():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    learn = Learner(digits(n=60), net, weighted_by_batch, cbs=Record('network'))
    before = copy.deepcopy(net.state_dict())
    with learn.no_bar(), learn.no_logging(), pytest.raises(InputError, match='has no loss of its own'): learn.fit(1)
    for k, v in net.state_dict().items(): assert torch.equal(v, before[k])
    with pytest.raises(InputError, match="must be 'last layer' or 'network'"): Record('all')

def test_self_influence_refuses_what_has_no_closed_form():
    def linear(c): return nn.Sequential(nn.Flatten(), nn.Linear(64, c))
    for net, loss, words in [(Scaled(), nn.CrossEntropyLoss(), 'not the output of a trained nn.Linear'),
                             (linear(10), weighted_by_batch, 'no loss of its own'),
                             (linear(900), nn.CrossEntropyLoss(), '58500 parameters')]:
        with pytest.raises(InputError, match=words):
            SelfInfluence().score(Learner(digits(n=60), net, loss), np.arange(3))

def test_a_bank_of_another_population_is_refused(table, bank):
    other = bank.at(np.arange(len(bank.y)))  # in memory
    for o in other.shards: o['phi_valid'] = o['phi_valid'][:-1]
    with pytest.raises(InputError, match='validation'): RMIA(other).score(table[0], np.arange(3))

def test_user_rankers_are_in_the_table():
    class Mine(Ranker):
        "By position"
        needs, trainings, cost, source = 'nothing', '0', 'nothing', 'here'
        def score(self, learn, at): return np.asarray(at, dtype=float)
    assert ranker_table().loc['Mine'].tolist() == ['nothing', '0', 'nothing', 'here']

def test_rank_refuses_what_is_not_a_request_and_names_score():
    learn = Learner(digits(n=50), mlp(), nn.CrossEntropyLoss())
    for wrong in (np.arange(3), learn.dls, None):
        with pytest.raises(InputError, match=f"not {type(wrong).__name__}: .*score.learn, positions"):
            Confidence().rank(learn, wrong)
