"Sequences: which samples each stage is fed, resumed runs, and refusals."
import numpy as np, pytest, re, torch, warnings
from common import InterruptAt
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner
from torch import nn
from rsu.core.config import InputError
from rsu.core.datasets import digits
from rsu.core.recipe import Recipe, small_cnn
from rsu.core.split import ForgetSplit
from rsu.algorithms.adversarial import AMUN, BoundaryShrink
from rsu.algorithms.ascent import GradAscent, NegGradPlus, RandomLabel, SalUn, SFRon
from rsu.algorithms.descent import MSG, CFk, NoT
from rsu.algorithms.exact import Retrain
from rsu.algorithms.teacher import DELETE, SCRUB, BadTeacher
from rsu.algorithms.unseen import LoTUS, ReGUn
from rsu.algorithms.base import Algorithm, FineTune
import rsu.algorithms.unlearn # noqa: F401, gives every Learner the method `unlearn`
from rsu.ranking.rankers import Confidence, LiRA, Ranking
from rsu.sequence.sequence import (RUM, ByChance, ByClass, Labelled, NaturalBreaks, SeqUnlearn, Thresholds, _Carry)

@pytest.fixture(scope='module')
def learn(): return Recipe(small_cnn, n_epoch=3, lr=5e-3).fit(digits(n=300), quiet=True)

@pytest.fixture(scope='module')
def risk(learn): return Confidence().rank(learn, ForgetSplit(learn.dls, 'random:60', seed=0))

def linear(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def interrupted(learn, risk, how, step, path):
    with pytest.raises(KeyboardInterrupt): learn.unlearn(risk, how, cbs=InterruptAt(step), path=path, quiet=True)

# --- which samples are fed

class FedForget(Callback):
    "The samples to forget that each fit is fed, in the order of its batches."
    run_valid = False
    def __init__(self, forget): self.forget,self.fits = set(forget),[]
    def before_fit(self): self.fits.append([])
    def before_batch(self):
        self.fits[-1] += [i for idx, _ in self.learn.dls.train.now.values() for i in idx if i in self.forget]

@pytest.mark.parametrize('how', [
    GradAscent(), NegGradPlus(), RandomLabel(), RandomLabel(joint=True), SalUn(), SFRon(iters=60), BoundaryShrink(),
    SCRUB(), BadTeacher(), DELETE(), ReGUn(), AMUN(eps=.64, steps=5, doublings=0)], ids=lambda o: o.name)
def test_each_stage_is_fed_its_whole_group_in_one_epoch(how):
    tiny = Recipe(linear, n_epoch=1, lr=5e-3).fit(digits(n=300), quiet=True) # the batches do not depend on the weights
    few = Confidence().rank(tiny, ForgetSplit(tiny.dls, 'random:30', seed=0))
    for bs, groups in [(8, 3), (4, 5)]:
        fed,one = FedForget(few.forget), how.replace(bs=bs, bs_forget=bs, n_epoch=1, lr=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore') # AMUN reports samples that keep their label
            done = tiny.unlearn(few, SeqUnlearn(one, groups), cbs=fed, quiet=True).unlearning
        for fit, group in zip(fed.fits, done.groups.values()):
            assert np.unique(fit).tolist() == group.tolist()
            # These two repeat the group during their pass over retained samples.
            if not isinstance(how, (NegGradPlus, SFRon)): assert len(fit) == len(group)
        assert done.steps == sum(one.budget(few))

class FrozenWeights(Callback):
    "Did the weights change that CF-k freezes?"
    order = Algorithm.order+1
    def frozen(self): return [p for p in self.model.parameters() if not p.requires_grad]
    def before_fit(self): self.start = [p.detach().clone() for p in self.frozen()]
    def after_fit(self): self.changed = [not torch.equal(p, q) for p, q in zip(self.frozen(), self.start)]

def test_frozen_weights_do_not_change_when_gradients_were_accumulated_at_the_end_of_the_stage_before(learn, risk):
    watch = FrozenWeights()
    hows = NegGradPlus(n_epoch=1, bs=8, lr=1e-3), CFk(k=1, n_epoch=2, bs=8, lr=1e-3)
    learn.unlearn(risk, SeqUnlearn(hows, 2), cbs=[GradientAccumulation(24), watch], quiet=True)
    assert len(watch.changed) and not any(watch.changed)

class StateAtStart(Callback):
    "How many parameters the optimiser has a state for at the start of each fit."
    order = _Carry.order+1
    def __init__(self): self.sizes = []
    def before_fit(self): self.sizes.append(len(self.learn.opt.opt.state))

@pytest.mark.parametrize('optimiser', ['fresh', 'kept'])
def test_the_state_of_the_optimiser_is_passed_on_only_when_it_is_kept(optimiser, learn, risk):
    record = StateAtStart()
    how = SeqUnlearn(NegGradPlus(n_epoch=1, bs=64, lr=1e-3), optimiser=optimiser)
    learn.unlearn(risk, how, cbs=record, quiet=True)
    n = sum(p.requires_grad for p in learn.model.parameters())
    assert record.sizes == ([0, n, n] if optimiser == 'kept' else [0, 0, 0])

# --- resumed runs

reranked = SeqUnlearn(NegGradPlus(n_epoch=2, lr=.003, bs=64), order='interleaved', pending='retain',
                      rerank=Confidence, repair=FineTune(n_epoch=1, lr=.001, bs=64))

@pytest.mark.parametrize('how', [
    reranked, reranked.replace(rerank=None, optimiser='kept', schedule='whole'),
    SeqUnlearn(SCRUB(n_epoch=2, lr=1e-3, bs=64), optimiser='kept'),
    SeqUnlearn(ReGUn(n_epoch=2, bs=16)), SeqUnlearn(NoT(n_epoch=2, bs=64), 2)],
    ids=['reranked', 'momentum', 'Adam', 'ReGUn', 'NoT'])
def test_a_resumed_run_ends_in_the_same_weights_wherever_it_was_interrupted(how, learn, risk, tmp_path):
    whole = learn.unlearn(risk, how, quiet=True)
    columns = [k for k in whole.unlearning.stages if k not in ('seconds', 'memory')]
    def same(new): return all(torch.equal(p, q) for p, q in zip(new.model.state_dict().values(),
                                                                whole.model.state_dict().values()))
    for step in range(1, whole.unlearning.steps, 5):
        path = tmp_path/str(step)
        interrupted(learn, risk, how, step, path)
        resumed = learn.unlearn(risk, how, path=path, quiet=True)
        assert same(resumed)
        assert resumed.unlearning.stages[columns].equals(whole.unlearning.stages[columns])
        assert same(learn.unlearn(risk, how, path=path, cbs=InterruptAt(1), quiet=True)) # complete: it takes no step
        with pytest.raises(InputError, match='another run'): learn.unlearn(risk, how, path=path, seed=1, quiet=True)

@pytest.mark.parametrize('threes, fives', [(0, 5), (99, 0), (99, 5)])
def test_lotus_counts_the_samples_whose_class_remains(threes, fives, learn):
    "The reference is the accuracy on validation samples, times the share of samples whose class remains."
    y = ForgetSplit(learn.dls, [0]).y
    idx = np.r_[np.flatnonzero(y == 3)[:threes], np.flatnonzero(y == 5)[:fives]] # 99 are all
    seen = []
    class Reference(Callback):
        def before_train(self): seen.append(self.learn.lotus.unseen)
    new = learn.unlearn(ForgetSplit(learn.dls, idx), LoTUS(n_epoch=1), cbs=Reference(), quiet=True)
    assert (y == 3).sum() < 99 and new.unlearning.before['valid'] > 0
    assert seen == [pytest.approx(new.unlearning.before['valid']*fives/len(idx))]

def test_a_sequence_of_lotus_can_be_resumed_and_one_group_equals_the_algorithm_alone(tmp_path):
    learn = Recipe(small_cnn, n_epoch=8, lr=5e-3).fit(digits(n=300), quiet=True)
    threes, how = Confidence().rank(learn, ForgetSplit(learn.dls, 'class:3')), LoTUS(n_epoch=3, lr=1e-3, bs=32)
    def same(a, b): return all(torch.equal(p, q) for p, q in zip(a.model.state_dict().values(),
                                                                 b.model.state_dict().values()))
    one, alone = (learn.unlearn(threes, o, quiet=True) for o in (SeqUnlearn(how, 1), how))
    assert same(one, alone) and alone.unlearning.steps > 3
    two = SeqUnlearn(how, 2, schedule='whole', optimiser='kept')
    whole = learn.unlearn(threes, two, quiet=True)
    assert (whole.unlearning.stages.steps > 0).all()
    for step in (1, 3, whole.unlearning.steps): # in the first stage, and at the end of the second
        interrupted(learn, threes, two, step, tmp_path/str(step))
        assert same(learn.unlearn(threes, two, path=tmp_path/str(step), quiet=True), whole)

class Strides(Callback):
    "Does the state of the optimiser have the strides of the weights?"
    order = _Carry.order+1
    def __init__(self): self.alike = []
    def before_fit(self):
        self.alike += [v.stride() == p.stride() for p, o in self.opt.opt.state.items() for v in o.values()
                       if torch.is_tensor(v) and v.shape == p.shape]

def test_a_resumed_state_of_the_optimiser_has_the_strides_of_the_weights(learn, risk, tmp_path):
    "`small_cnn` is channels last, and a fused update, as on a GPU, reads weights and state in the order of memory."
    how,strides = SeqUnlearn(SCRUB(n_epoch=2, lr=1e-3, bs=64), optimiser='kept'), Strides()
    first = learn.unlearn(risk, how, quiet=True).unlearning.stages.steps[0]
    interrupted(learn, risk, how, first+1, tmp_path)
    learn.unlearn(risk, how, cbs=strides, path=tmp_path, quiet=True)
    assert strides.alike and all(strides.alike)

# --- refusals

@pytest.mark.parametrize('how,words', [
    (SeqUnlearn(SCRUB(), groups=99), '99 groups cannot be made of 60 samples'),
    (SeqUnlearn(SCRUB(bs=256), groups=30), 'too few for SCRUB to forget the 2 samples of group 1'),
    (SeqUnlearn(Retrain()), 'cannot be a stage of a sequence'),
    (SeqUnlearn(SCRUB(), order=('1', '2')), 'The order 1, 2 is not one of the groups 1, 2, 3'),
    (SeqUnlearn((SCRUB(), None)), 'An algorithm is given for 2 groups and there are 3'),
    (SeqUnlearn(SCRUB(), Labelled(['a'])), '1 labels for 60 samples to forget'),
    (SeqUnlearn(SCRUB(), NaturalBreaks(999)), '999 groups cannot be made of 60 different scores'),
    (SeqUnlearn(SCRUB(), ByChance(99)), '99 groups cannot be made of 60 samples')], ids=lambda o: str(o)[:30])
def test_sequences_that_do_not_fit_the_request(how, words, learn, risk):
    with pytest.raises(InputError) as e: learn.unlearn(risk, how)
    assert words in str(e.value)

@pytest.mark.parametrize('algorithm', [SCRUB(bs=256), SCRUB(bs=64, bs_forget=60), DELETE(bs=64)], ids=repr)
def test_too_few_steps_advise_settings_with_which_the_sequence_runs(algorithm, learn, risk):
    how = SeqUnlearn(algorithm, groups=30)
    with pytest.raises(InputError, match='too few for') as e: how.stages(risk)
    batches = re.search(r'algorithm.replace\((.*?)\)', str(e.value))[1]
    settings = {k: eval(v) for k, v in (o.split('=') for o in batches.split(', '))}
    groups = int(re.search(r'groups=(\d+)', str(e.value))[1])
    assert len(how.replace(algorithm=algorithm.replace(**settings)).stages(risk)) == 30
    assert len(how.replace(groups=groups).stages(risk)) == groups
    # larger batches or more groups do not fit
    with pytest.raises(InputError, match='too few'):
        how.replace(algorithm=algorithm.replace(**{**settings, 'bs': 2*settings['bs']})).stages(risk)
    with pytest.raises(InputError, match='too few'): how.replace(groups=groups+1).stages(risk)

@pytest.mark.parametrize('groups', [3, ByClass()])
def test_groups_and_orders_need_scores(groups, learn, risk):
    with pytest.raises(InputError, match='A sequence needs scores to form its groups'):
        learn.unlearn(ForgetSplit(learn.dls, risk.forget), SeqUnlearn(SCRUB(), groups))

@pytest.mark.parametrize('bad,words', [
    (dict(order='descnding'), "did you mean 'descending'"),
    (dict(groups=0), 'groups=0 must be a whole number in [1, inf)'),
    (dict(groups='3'), "groups='3' must be a whole number in [1, inf) or an instance of Groups"),
    (dict(algorithm=SCRUB), 'give an instance such as SCRUB()'),
    (dict(algorithm=(None, None)), 'No group has an algorithm'),
    (dict(repair=SCRUB()), 'repair=SCRUB() does not train on retained samples alone'),
    (dict(repair=Retrain()), 'repair=Retrain() does not train on retained samples alone'),
    (dict(repair='FineTune'), "repair='FineTune' must be an instance of Algorithm"),
    (dict(repair=MSG()), 'repair=MSG() does not train on retained samples alone'),
    (dict(until=2), "until=2 must be a number in [0, 1], 'valid'"),
    (dict(rerank='Confidence'), "rerank='Confidence' must be a class"),
    (dict(rerank=LiRA), 'it needs more than the model (bank)'),
    (dict(rerank=Confidence, groups=ByClass()), 'ByClass groups do not change with a ranking'),
    (dict(rerank=dict), "rerank=<class 'dict'> is not a ranker class"),
    (dict(order=3), "order=3 must be 'descending', 'ascending'"),
    (dict(optimiser='kept', algorithm=(SCRUB(), None, None)), "use optimiser='kept' with a single algorithm only")],
    ids=lambda o: str(o)[:30])
def test_settings_that_do_not_fit_together(bad, words):
    with pytest.raises(InputError) as e: SeqUnlearn(**{'algorithm': SCRUB(), **bad})
    assert words in str(e.value)

@pytest.mark.parametrize('order', ['ascending', 'descending'])
def test_a_group_of_one_sample_whose_batch_would_have_no_statistics(order):
    bare = Learner(digits(n=600), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False),
                                               nn.Linear(64, 10)))
    three = Ranking.from_scores(ForgetSplit(bare.dls, [1, 2, 3]), [.1, .2, .3])
    with pytest.raises(InputError, match='A batch of group 2 would hold one sample'):
        bare.unlearn(three, SeqUnlearn(NegGradPlus(n_epoch=1), 2, order), cbs=InterruptAt(1))

@pytest.mark.parametrize('make,words', [
    (lambda: Thresholds((1, 2)), 'The thresholds 1.0, 2.0 do not fall'),
    (lambda: NaturalBreaks(0), 'n=0 must be a whole number in [1, inf)'),
    (lambda: RUM(SCRUB(), SCRUB()), 'RUM has three groups and 2 algorithms were given')])
def test_groups_that_cannot_be(make, words):
    with pytest.raises(InputError) as e: make()
    assert words in str(e.value)
