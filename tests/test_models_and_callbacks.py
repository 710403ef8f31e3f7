"A user's models and callbacks work as expected, or are refused in one sentence before any work."
import copy

import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import nn
from rsu.algorithms.adversarial import AMUN
from rsu.algorithms.ascent import NegGradPlus, RandomLabel, SalUn, SFRon
from rsu.core.data import Samples, loaders
from rsu.core.split import ForgetSplit
from rsu.algorithms.descent import NoT, CFk, EUk, L1Sparse, first_layers
from rsu.evaluation.evaluate import evaluate
from rsu.algorithms.exact import Retrain
from rsu.algorithms.importance import SSD, Fisher, Influence
from rsu.ranking.rankers import Confidence, Curvature, Entanglement, GradNorm, HoldoutRetrain
from rsu.core.recipe import Recipe, make
from rsu.ranking.bank import ReferenceBank
from rsu.algorithms.many import Job, unlearn_many
from rsu.sequence.sequence import SeqUnlearn
from rsu.algorithms.teacher import SCRUB, BadTeacher
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError

# fastai's own, when it reads a model back
pytestmark = pytest.mark.filterwarnings('ignore:[^_]*numpy.core is deprecated')

y = torch.arange(90) % 3
x = torch.randn(90, 6, generator=torch.Generator().manual_seed(0)) + F.one_hot(y, 6)
def data(x=x, y=y):
    return loaders(*(Samples(x[at], y[at]) for at in (slice(0, 50), slice(50, 70), slice(70, 90))), bs=16, device='cpu')
def mlp3(): return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
def trained(net, dls=None, path='.', n=1):
    torch.manual_seed(0)
    made = net() if isinstance(net, type) or callable(net) and not isinstance(net, nn.Module) else net
    learn = Learner(dls or data(), made, CrossEntropyLossFlat(), metrics=accuracy, path=path)
    if n:
        with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2)
    return learn

def weights(learn): return torch.cat([p.detach().flatten().float() for p in learn.model.parameters()])

@pytest.fixture
def learn(tmp_path): return trained(mlp3, path=tmp_path)

@pytest.fixture
def split(learn): return ForgetSplit(learn.dls, range(9))

# callbacks

@pytest.mark.parametrize('cb', [MixUp(), CutMix()], ids=lambda o: type(o).__name__)
def test_mixup_and_cutmix_are_refused(learn, split, cb):
    for how in (FineTune(n_epoch=1), SeqUnlearn(NegGradPlus(n_epoch=1), groups=1)):
        with pytest.raises(InputError, match=f'{type(cb).__name__} mixes the samples of a batch'):
            unlearn(learn, split, how, cbs=cb, quiet=True)
    learn.recipe = Recipe(mlp3, n_epoch=1)
    assert unlearn(learn, split, SSD(), cbs=cb, quiet=True).unlearning.stages.ended[0] == 'done' # has no batches

@pytest.mark.parametrize('how', [SFRon(n_epoch=1, iters=5, every=2), SCRUB(), RandomLabel(n_epoch=1),
                                 L1Sparse(n_epoch=1), SalUn(n_epoch=1, joint=True)], ids=lambda o: o.name)
def test_gradient_accumulation_is_refused_where_single_batches_matter(learn, split, how):
    with pytest.raises(InputError, match=f'GradientAccumulation adds up.*{type(how).__name__} needs'):
        unlearn(learn, split, how, cbs=GradientAccumulation(64), quiet=True)

@pytest.mark.parametrize('how', [FineTune(n_epoch=1, lr=1., bs=41), RandomLabel(joint=True, n_epoch=1, lr=1., bs=50)],
                         ids=lambda o: o.name)
def test_accumulated_small_batches_are_one_large_batch(learn, split, how):
    "FineTune with 41 retained samples has batches of 10 and puts the sample left over into the last one."
    whole = unlearn(learn, split, how, quiet=True)
    parts = unlearn(learn, split, how.replace(bs=10), cbs=GradientAccumulation(how.bs), quiet=True)
    assert parts.unlearning.steps == whole.unlearning.steps == 1
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-5)
    assert (weights(whole)-weights(learn)).abs().max() > .05

def test_callbacks_that_read_validation_results_work_with_quiet(learn, split, tmp_path, capsys):
    stop = EarlyStoppingCallback(monitor='valid_loss', min_delta=10., patience=1)
    loud, quiet = (unlearn(learn, split, FineTune(n_epoch=6), cbs=copy.copy(stop), quiet=o) for o in (False, True))
    assert quiet.unlearning.steps == loud.unlearning.steps < 6
    torch.testing.assert_close(weights(quiet), weights(loud), rtol=0, atol=0)
    capsys.readouterr()
    unlearn(learn, split, FineTune(n_epoch=2), cbs=[SaveModelCallback(monitor='accuracy', fname='best')], quiet=True)
    assert (learn.path/'models'/'best.pth').exists() and 'epoch     train_loss' not in capsys.readouterr().out
    Recipe(mlp3, n_epoch=2).fit(learn.dls, quiet=True, cbs=EarlyStoppingCallback(monitor='valid_loss'))

def test_callbacks_that_would_change_nothing_are_refused(learn, split):
    with pytest.raises(InputError, match='the algorithm sets the learning rate at every batch'):
        unlearn(learn, split, FineTune(n_epoch=2), cbs=ReduceLROnPlateau())
    with pytest.raises(InputError, match='ShowGraphCallback draws a graph'):
        unlearn(learn, split, FineTune(n_epoch=2), cbs=ShowGraphCallback(), quiet=True)
    unlearn(learn, split, FineTune(n_epoch=2), cbs=GradientClip(), quiet=True)

class Halves(Callback):
    "The model sees inputs of half the size."
    def before_batch(self): self.learn.xb = (self.x/2,)

class HalvesInTraining(Halves): run_valid = False

class Counts(Callback):
    n = 0
    def before_batch(self): self.n += 1

def test_a_callback_that_changes_inputs_is_refused(split):
    learn = Learner(split.dls, mlp3(), CrossEntropyLossFlat(), cbs=Halves())
    words = 'Halves sets self.learn.xb, but the model is evaluated without callbacks'
    with pytest.raises(InputError, match=words): unlearn(learn, split, FineTune(n_epoch=1), quiet=True)
    plain = trained(mlp3, split.dls)
    with pytest.raises(InputError, match=words): unlearn(plain, split, SSD(), cbs=Halves(), quiet=True)
    with pytest.raises(InputError, match='HalvesInTraining sets self.learn.xb.*uses two roles side by side'):
        unlearn(plain, split, NegGradPlus(n_epoch=1), cbs=HalvesInTraining(), quiet=True)
    unlearn(plain, split, FineTune(n_epoch=1), cbs=HalvesInTraining(), quiet=True)

def test_callbacks_run_during_the_fits_only(split):
    of_learner, of_call = Counts(), Counts()
    learn = Learner(split.dls, mlp3(), CrossEntropyLossFlat(), cbs=of_learner)
    new = unlearn(learn, split, FineTune(n_epoch=1, bs=10), cbs=of_call, quiet=True)
    assert (of_learner.n, of_call.n) == (0, 4) and of_learner in learn.cbs
    assert not [cb for cb in new.cbs if isinstance(cb, Counts)]

# gradients switched off around a call

off = dict(no_grad=lambda: torch.set_grad_enabled(False), inference=torch.inference_mode)

@pytest.mark.parametrize('mode', off.values(), ids=off)
@pytest.mark.parametrize('how', [FineTune(n_epoch=1), SFRon(n_epoch=1, iters=5, every=2, lr=1e-4), SSD(), Fisher(),
                                 Influence(), SCRUB(), Retrain(), BadTeacher(), AMUN(n_epoch=1), SalUn(n_epoch=1),
                                 EUk(k=1)], ids=lambda o: o.name)
def test_unlearning_works_where_the_caller_disabled_gradients(learn, split, how, mode):
    learn.recipe = Recipe(mlp3, n_epoch=1)
    want = weights(unlearn(learn, split, how, quiet=True))
    with mode():
        got = unlearn(learn, split, how, quiet=True)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(weights(got), want, rtol=0, atol=0)

@pytest.mark.parametrize('mode', off.values(), ids=off)
def test_ranking_and_training_work_where_the_caller_disabled_gradients(learn, split, mode, tmp_path):
    recipe = Recipe(mlp3, n_epoch=1)
    for ranker in (GradNorm(), Curvature(), HoldoutRetrain(n_epoch=1)):
        want = ranker.rank(learn, split).scores
        with mode(): np.testing.assert_array_equal(ranker.rank(learn, split).scores, want)
    want = weights(recipe.fit(learn.dls, quiet=True))
    with mode(): torch.testing.assert_close(weights(recipe.fit(learn.dls, quiet=True)), want, rtol=0, atol=0)
    with mode():
        torch.testing.assert_close(weights(make(lambda dls: recipe.fit(dls, quiet=True), learn.dls, range(50), 0)),
                                   weights(make(recipe, learn.dls, range(50), 0)), rtol=.5, atol=.5)
    learn.recipe = recipe
    with mode(): assert torch.isfinite(ReferenceBank.fit(learn, 2, tmp_path/'bank', quiet=True).phi).all()

# outputs

class OutputOf(nn.Module):
    "A network that gives `f(logits, training)`"
    def __init__(self, f, c=3):
        super().__init__()
        self.net, self.f = nn.Linear(6, c), f
    def forward(self, x): return self.f(self.net(x), self.training)

outputs = dict(dict_=(lambda o, training: dict(logits=o), 3, 'gives a dict and not a tensor of logits'),
               auxiliary=(lambda o, training: (o, o) if training else o, 3, 'In training mode the model gives a tuple'),
               wider=(lambda o, training: torch.cat([o, o], 1) if training else o, 3,
                      'numbers for a sample in training mode and'),
               one=(lambda o, training: o, 1, 'one number for a sample, as for a binary target: give it two logits'))

@pytest.mark.parametrize('f,c,words', outputs.values(), ids=outputs)
def test_models_whose_output_is_not_logits_are_refused_everywhere(split, learn, tmp_path, f, c, words):
    odd = Learner(learn.dls, OutputOf(f, c), CrossEntropyLossFlat())
    odd.recipe = Recipe(lambda: OutputOf(f, c), n_epoch=1)
    evaluated = copy.copy(unlearn(learn, split, FineTune(n_epoch=1), quiet=True))
    evaluated.model = odd.model
    def recipe(dls): # reads a batch, as training would
        dls.train.one_batch()
        return Learner(dls, OutputOf(f, c), CrossEntropyLossFlat())
    learn.recipe = recipe
    acts = dict(unlearn=lambda: unlearn(odd, split, FineTune(n_epoch=1), quiet=True),
                oracle=lambda: unlearn(learn, split, Retrain(), quiet=True),
                bank=lambda: ReferenceBank.fit(odd, 2, tmp_path/'bank', quiet=True),
                evaluate=lambda: evaluate(evaluated, oracles=2, quiet=True),
                **{type(o).__name__: lambda o=o: o.rank(odd, split)
                   for o in (Confidence(), GradNorm(), HoldoutRetrain())})
    for name, act in acts.items():
        with pytest.raises(InputError, match=words): act()
    assert not (tmp_path/'bank').exists()

# networks

class StoresFeatures(nn.Module):
    "StoresFeatures features of its last pass, as some published networks do."
    def __init__(self):
        super().__init__()
        self.body, self.head, self.outputs = nn.Linear(6, 8), nn.Linear(8, 3), {}
    def forward(self, x):
        self.features = self.body(x).tanh()
        self.outputs['logits'] = [self.head(self.features)]
        return self.outputs['logits'][0]

@pytest.mark.parametrize('act', [*(lambda l, s, o=o: o.rank(l, s).scores
                                   for o in (GradNorm(), Curvature(), HoldoutRetrain(n_epoch=1), Entanglement())),
                                 *(lambda l, s, o=o: weights(unlearn(l, s, o, quiet=True))
                                   for o in (FineTune(n_epoch=1), SCRUB(), BadTeacher(), SSD(), Influence())),
                                 lambda l, s: weights(
                                     list(unlearn_many(l, [Job(s, FineTune(n_epoch=1))], quiet=True))[0][1])])
def test_a_model_that_stores_its_activations_works(act):
    learn = trained(StoresFeatures)
    learn.model(x[:4]) # with a graph
    plain = copy.copy(learn)
    plain.model = nn.Sequential(learn.model.body, nn.Tanh(), learn.model.head)
    split = ForgetSplit(learn.dls, range(9))
    torch.testing.assert_close(torch.as_tensor(act(learn, split)), torch.as_tensor(act(plain, split)))
    assert learn.model.features.grad_fn is not None or not torch.is_inference(learn.model.features)

class Half(nn.Module):
    "Weights in bfloat16, logits in float32."
    def __init__(self):
        super().__init__()
        self.net = mlp3().bfloat16()
    def forward(self, x): return self.net(x.bfloat16()).float()

@pytest.mark.parametrize('how', [FineTune(n_epoch=2), SeqUnlearn(NegGradPlus(n_epoch=2), groups=1), SSD(), SCRUB()],
                         ids=lambda o: type(o).__name__)
def test_weights_in_bfloat16_are_kept_and_resumed(how, tmp_path):
    learn = trained(Half)
    split = ForgetSplit(learn.dls, range(9))
    want = unlearn(learn, split, how, quiet=True)
    for _ in range(2): # the second reads what the first has stored
        got = unlearn(learn, split, how, quiet=True, path=tmp_path)
        assert all(torch.equal(a, b) and a.dtype == b.dtype == torch.bfloat16
                   for a, b in zip(got.model.parameters(), want.model.parameters()))
    assert (tmp_path/'stages.safetensors').exists()
    for ranker in (GradNorm(), Curvature(), Confidence()): assert np.isfinite(ranker.rank(learn, split).scores).all()

def conv3d():
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
                         nn.Linear(4, 3))
def lazy(): return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
def eager(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))

@pytest.mark.parametrize('net,shape', [(conv3d, (1,5,5,5)), (lazy, (1,5,5))])
def test_unusual_networks_work(net, shape, tmp_path):
    dls = data(torch.randn(90, *shape, generator=torch.Generator().manual_seed(0)))
    learn = Recipe(net, n_epoch=1).fit(dls, quiet=True)
    split = ForgetSplit(dls, range(9))
    for how in (Retrain(), BadTeacher(), FineTune(n_epoch=1)):
        assert torch.isfinite(weights(unlearn(learn, split, how, quiet=True))).all()
    assert torch.isfinite(ReferenceBank.fit(learn, 2, tmp_path/'bank', quiet=True).phi).all()
    a, b = (Recipe(net).build(dls, seed=s) for s in (0, 0))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(next(a.parameters()), next(Recipe(net).build(dls, seed=1).parameters()))

def test_a_lazy_layer_without_weights_is_refused():
    dls = data(torch.randn(90, 1, 5, 5))
    learn, split = Learner(dls, lazy(), CrossEntropyLossFlat()), ForgetSplit(dls, range(9))
    for act in (lambda: unlearn(learn, split, FineTune(n_epoch=1)), lambda: GradNorm().rank(learn, split)):
        with pytest.raises(InputError, match='A lazy layer of the model has no weights yet'): act()

class HeadFirst(nn.Module):
    "Registers its head before its body."
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(8, 3), nn.Linear(6, 8)
    def forward(self, x): return self.head(self.body(x).tanh())

def test_the_last_layer_is_the_one_called_last():
    learn = trained(HeadFirst)
    learn.recipe = Recipe(HeadFirst, n_epoch=1)
    split = ForgetSplit(learn.dls, range(9))
    for how in (CFk(k=1, n_epoch=1), EUk(k=1)):
        new = unlearn(learn, split, how, quiet=True).model
        assert torch.equal(new.body.weight, learn.model.body.weight)
        assert not torch.equal(new.head.weight, learn.model.head.weight)
    plain = copy.copy(learn)
    plain.model = nn.Sequential(learn.model.body, nn.Tanh(), learn.model.head)
    np.testing.assert_array_equal(Entanglement().rank(learn, split).scores, Entanglement().rank(plain, split).scores)

class NeverCalled(HeadFirst):
    "Has a layer that no forward pass calls, and calls its body twice."
    def __init__(self):
        super().__init__()
        self.aside = nn.Linear(6, 8)
    def forward(self, x): return self.head((self.body(x) - self.body(0*x)).tanh())

def test_the_first_layer_is_the_one_called_first():
    net = NeverCalled()
    assert first_layers(net, 1, (x[:2],)) == [net.body] and first_layers(net, 9, (x[:2],)) == [net.body, net.head]
    learn = trained(NeverCalled)
    new = unlearn(learn, ForgetSplit(learn.dls, range(9)), NoT(n_epoch=3, lr=1e-3), quiet=True)
    assert new.unlearning.stages.ended[0] == 'done' and torch.equal(new.model.aside.weight, learn.model.aside.weight)
    large = learn.model.body.weight.abs() > .05
    assert (new.model.body.weight.sign() == -learn.model.body.weight.sign())[large].all()

class Narrow(nn.Module):
    "Registers its head before a body with as many outputs."
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(3, 3), nn.Linear(6, 3)
    def forward(self, x): return self.head(self.body(x).tanh())

def test_fisher_resets_rows_of_the_layer_called_last():
    learn = trained(Narrow)
    split = ForgetSplit(learn.dls, 'class:0')
    new, old = unlearn(learn, split, Fisher(alpha=0), quiet=True).model, learn.model
    changed = [k for (k, p), q in zip(new.named_parameters(), old.parameters()) if not torch.equal(p, q)]
    assert changed == ['head.weight', 'head.bias'] # the row of the class that is gone
    assert torch.equal(new.head.weight[1:], old.head.weight[1:])

@pytest.mark.parametrize('part, at', [('validation', 1), ('test', 2)])
def test_a_class_without_a_logit_is_refused_before_any_work(part, at):
    learn = trained(Narrow)
    wide = Samples(torch.randn(8, 6), torch.arange(8) % 4)
    learn.dls = copy.copy(learn.dls)
    wide = loaders(wide, wide, wide, device='cpu').loaders[at]
    learn.dls.loaders = [wide if i == at else o for i, o in enumerate(learn.dls.loaders)]
    split, before = ForgetSplit(learn.dls, range(9)), [p.clone() for p in learn.model.parameters()]
    for act in (lambda: unlearn(learn, split, Retrain(), quiet=True), lambda: GradNorm().rank(learn, split),
                lambda: unlearn(learn, split, FineTune(n_epoch=1), quiet=True)):
        with pytest.raises(InputError, match=f'The {part} labels go from 0 to 3 and the model has 3 logits'): act()
    assert all(map(torch.equal, before, learn.model.parameters()))
