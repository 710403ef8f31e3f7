"Closed-form algorithms: cached measurements, batch sizes, frozen weights, loss functions, refusals."
import copy, warnings

import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.tabular.all import CategoryBlock, Categorify, Normalize, TabularDataLoaders, tabular_learner
from fastai.torch_core import no_random
from torch import nn
from torch.nn.utils import prune
from rsu.algorithms.importance import LFSSD, SSD, Fisher, Influence, importance, measuring_once
import rsu.algorithms.unlearn # noqa: F401, gives every Learner the method `unlearn`
from rsu.core.config import InputError
from rsu.core.datasets import digits
from rsu.core.recipe import Recipe
from rsu.core.split import ForgetSplit
from rsu.ranking.rankers import Random
from rsu.sequence.sequence import SeqUnlearn

# fastai's tables hand such arrays to PyTorch
pytestmark = pytest.mark.filterwarnings('ignore:The given NumPy array is not writable')

def tiny(c_in=1, c_out=10):
    def conv(i, o): return nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
    return nn.Sequential(*conv(c_in, 16), *conv(16, 32), nn.Flatten(), nn.Linear(128, c_out))

every = [SSD(alpha=2.), LFSSD(alpha=2.), Fisher(), Influence()]
each_algorithm = pytest.mark.parametrize('how', every, ids=lambda o: o.name)

@pytest.fixture(scope='module')
def learn(): return Recipe(tiny, n_epoch=10, lr=1e-2).fit(digits(n=300), quiet=True)

@pytest.fixture(scope='module')
def some(learn): return ForgetSplit(learn.dls, 'random:30', seed=0)

@pytest.fixture(scope='module')
def ranking(learn, some): return Random().rank(learn, some)

def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()))

def changed(learn, model=None, loss=None):
    "A copy of the learner with another model or loss function"
    res = copy.copy(learn)
    res.model = copy.deepcopy(learn.model) if model is None else model
    if loss: res.loss_func = loss
    return res

class Counted(SSD):
    "SSD that counts its measurements"
    count = 0
    def importances(self):
        Counted.count += 1
        return super().importances()

# cached measurements

@pytest.mark.parametrize('groups', [1, 3])
@pytest.mark.parametrize('how', [SSD(alpha=5.), LFSSD(alpha=2.), Fisher(), Fisher(alpha=1e-7)], ids=repr)
def test_measuring_once_gives_the_same_weights(learn, ranking, how, groups):
    def run(): return learn.unlearn(ranking, SeqUnlearn(how, groups=groups), quiet=True, seed=1)
    outside = run()
    with measuring_once(): assert same(run(), outside) and same(run(), outside)

def test_a_changed_input_needs_a_new_measurement(learn, some):
    Counted.count = 0
    other_request = ForgetSplit(learn.dls, 'class:3')
    frozen = changed(learn)
    frozen.model[0].requires_grad_(False)
    smooth = changed(learn, loss=LabelSmoothingCrossEntropyFlat())
    with measuring_once():
        inside = {a: learn.unlearn(some, Counted(alpha=a), quiet=True) for a in (1., 2., 5.)}
        assert Counted.count == 1
        for split, of in [(other_request, learn), (some, inside[1.]), (some, frozen), (some, smooth)]:
            of.unlearn(split, Counted(alpha=1.), quiet=True)
        assert Counted.count == 5
    learn.unlearn(some, Counted(), quiet=True)
    assert Counted.count == 6

# the same result, and only where it belongs

@each_algorithm
def test_batch_size_changes_only_rounding(learn, some, how):
    def steps(how):
        new = learn.unlearn(some, how, quiet=True)
        pairs = zip(new.model.parameters(), learn.model.parameters())
        return torch.cat([(p-q).flatten() for p, q in pairs]).detach()
    a, b = steps(how), steps(how.replace(bs=100))
    assert (a-b).norm() < 1e-3*b.norm()

def test_order_of_samples_changes_only_rounding(learn, some):
    one = SSD()
    one.learn, one.split, one.own_loss = learn, some, learn.loss_func
    model = learn.model.eval()
    a, b = [importance(model, one.value, one._equally(idx)) for idx in (some.forget, some.forget[::-1])]
    for k in a: assert (a[k]-b[k]).norm() < 1e-4*b[k].norm()

def not_vectorised(logits, y): return F.cross_entropy(logits, y) * (2. if logits.max().item() > 0 else 1.)

losses = [LabelSmoothingCrossEntropyFlat(), CrossEntropyLossFlat(weight=torch.linspace(.5, 2, 10)), not_vectorised]

@each_algorithm
@pytest.mark.parametrize('loss', losses, ids=['smoothed', 'weighted', 'not_vectorised'])
def test_frozen_weights_and_buffers_do_not_change(learn, how, loss):
    "With one forgotten sample, and with any loss function."
    if isinstance(getattr(loss, 'func', None), nn.Module) and getattr(loss.func, 'weight', None) is not None:
        loss.func.to(next(learn.model.parameters()).device)
    other = changed(learn, loss=loss)
    other.dls = digits(n=30)
    other.model[0].requires_grad_(False)
    new = other.unlearn(ForgetSplit(other.dls, [5]), how, quiet=True)
    assert all(torch.equal(p, q) for p, q in zip(new.model[0].parameters(), learn.model[0].parameters()))
    assert all(torch.equal(p, q) for p, q in zip(new.model.buffers(), learn.model.buffers()))
    assert new.unlearning.stages.ended[0] == 'done'

@each_algorithm
def test_pruned_weights_stay_zero(learn, some, how):
    cut = changed(learn, copy.deepcopy(learn.model).to(memory_format=torch.contiguous_format)) # as pruning requires
    prune.l1_unstructured(cut.model[3], 'weight', amount=.5)
    new = cut.unlearn(some, how, quiet=True)
    assert (new.model[3].weight == 0).float().mean().item() == .5

@pytest.fixture(scope='module')
def table():
    "A fastai table, whose model has two inputs: codes of the categories, and numbers."
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(colour=rng.choice(['red', 'green', 'blue'], 200), size=rng.normal(size=200)))
    df['sold'] = np.where((df.colour == 'red') ^ (df['size'] > 0), 'yes', 'no')
    dls = TabularDataLoaders.from_df(df, procs=[Categorify, Normalize], cat_names=['colour'], cont_names=['size'],
                                     y_names='sold', y_block=CategoryBlock(), valid_idx=range(150, 200), bs=32)
    with no_random(7): # a table that the network fits well
        learn = tabular_learner(dls, layers=[16], loss_func=CrossEntropyLossFlat())
        with learn.no_bar(), learn.no_logging(): learn.fit(5, 1e-2)
    return learn

@pytest.mark.parametrize('how', [SSD(alpha=1.), LFSSD(alpha=1.), Fisher(), Influence()], ids=lambda o: o.name)
def test_models_with_two_inputs(table, how):
    new = table.unlearn(ForgetSplit(table.dls, 'random:10', seed=0), how, quiet=True)
    assert max((p-q).abs().max() for p, q in zip(new.model.parameters(), table.model.parameters())) > 0
    assert new.unlearning.stages.ended[0] == 'done'

@pytest.mark.parametrize('how', [SSD(alpha=2.), Influence()], ids=lambda o: o.name)
def test_mixed_precision_is_carried_over(some, how):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # without a GPU, PyTorch warns that it casts nothing
        half = Recipe(tiny, n_epoch=1).fit(some.dls, quiet=True).to_fp16()
        assert hasattr(half.unlearn(some, how, quiet=True), 'mixed_precision')

# refusals

@pytest.mark.parametrize('make, words', [
    (lambda: SSD(lr=.1, wd=0.), 'SSD takes no gradient steps, so lr and wd would have no effect'),
    (lambda: SSD(alpha=0.), r'alpha=0.0 must be a number in \(0, inf\)'),
    (lambda: Fisher(alpha=-1.), r'alpha=-1.0 must be a number in \[0, inf\)'),
    (lambda: Fisher(alpha=float('inf')), r'alpha=inf must be a number in \[0, inf\)'),
    (lambda: Influence(damping=0.), r'damping=0.0 must be a number in \(0, inf\)'),
    (lambda: Influence(alpha=-1.), r'alpha=-1.0 must be a number in \[0, inf\)')])
def test_settings_are_refused(make, words):
    with pytest.raises(InputError, match=words): make()

def test_a_sequence_refuses_epochs(learn, ranking):
    with pytest.raises(InputError, match='Fisher computes its weights at once'):
        learn.unlearn(ranking, SeqUnlearn(Fisher()), n_epoch=3)

def test_a_parametrized_last_layer_is_refused(learn, some):
    normed = changed(learn)
    nn.utils.parametrizations.weight_norm(normed.model[-1])
    with pytest.raises(InputError, match="Fisher cannot change the weight of the last layer '7'"):
        normed.unlearn(some, Fisher())

def at_least_two(logits, y):
    assert len(y) > 1
    return F.cross_entropy(logits, y)

@pytest.mark.parametrize('loss', [at_least_two, lambda logits, y: F.cross_entropy(logits.view(2, -1), y.view(2))],
                         ids=['asserts', 'reshapes'])
def test_a_loss_that_fails_on_one_sample_is_refused(learn, some, loss):
    with pytest.raises(InputError, match='use a loss function that accepts a batch of one'):
        changed(learn, loss=loss).unlearn(some, SSD())
