"""Class weights and reductions: whatever works on single samples weights them as training does.
No result depends on `reduction`."""
import copy
from functools import partial

import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from rsu.algorithms.adversarial import AMUN
from rsu.algorithms.ascent import NegGradPlus, RandomLabel, SalUn, SFRon
from rsu.core.data import Samples, loaders
from rsu.core.split import ForgetSplit
from rsu.algorithms.importance import SSD, Fisher, Influence
from rsu.ranking.rankers import Curvature, GradNorm
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError

weight = torch.tensor([1., 1., 50.])

def net(): return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

@pytest.fixture(scope='module')
def learn():
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 6, generator=rng) + F.one_hot(y, 6)
    dls = loaders(*(Samples(x[at], y[at]) for at in (slice(0, 50), slice(50, 70), slice(70, 90))), bs=16, device='cpu')
    torch.manual_seed(0)
    learn = Learner(dls, net(), CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    return learn

def with_loss(learn, loss):
    res = copy.copy(learn)
    res.loss_func = loss
    return res

def gradients(learn, at, weight=None):
    "Of the weighted losses of single samples, by a loop: (n, P)"
    ps = list(learn.model.parameters())
    x, y = learn.dls.train_ds.tensors
    each = [F.cross_entropy(learn.model(x[i:i+1]), y[i:i+1], weight, reduction='sum') for i in at]
    return torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(o, ps)]) for o in each])

weighted = [nn.CrossEntropyLoss(weight), nn.CrossEntropyLoss(weight, reduction='sum'),
            CrossEntropyLossFlat(weight=weight),
            partial(F.cross_entropy, weight=weight)]

@pytest.mark.parametrize('loss', weighted)
@pytest.mark.parametrize('ranker', [GradNorm(), Curvature()])
def test_rankers_use_class_weights(learn, loss, ranker):
    at = np.arange(9)
    ratio = ranker.score(with_loss(learn, loss), at) / ranker.score(learn, at)
    np.testing.assert_allclose(ratio, weight[learn.dls.train_ds.tensors[1][at]], rtol=1e-3)

@pytest.mark.parametrize('loss', weighted)
def test_ssd_uses_class_weights(learn, loss):
    split = ForgetSplit(learn.dls, range(9))
    how = SSD(alpha=.5)
    got = unlearn(with_loss(learn, loss), split, how, quiet=True).model
    F_S, F_D = (gradients(learn, at, weight).square().mean(0) for at in (split.forget, range(50)))
    factor = torch.where(F_S > .5*F_D, (F_D/F_S).clamp(max=1), 1.)
    want = factor * torch.cat([p.flatten() for p in learn.model.parameters()])
    torch.testing.assert_close(torch.cat([p.flatten() for p in got.parameters()]), want)

@pytest.mark.parametrize('loss', weighted)
def test_influence_uses_class_weights(learn, loss):
    split = ForgetSplit(learn.dls, range(9))
    got = unlearn(with_loss(learn, loss), split, Influence(damping=.5), quiet=True).model
    S, R = (gradients(learn, at, weight).double() for at in (split.forget, split.retain))
    H = .5*torch.eye(S.shape[1]).double() + R.T@R/len(R)
    want = torch.linalg.solve(H, S.sum(0)/50 - len(S)/50*R.mean(0))
    moved = torch.cat([(p-q).flatten() for p, q in zip(got.parameters(), learn.model.parameters())]).detach().double()
    assert (moved-want).norm() < 1e-3*want.norm()

@pytest.mark.parametrize('how', [Fisher(alpha=1e-4), SSD(alpha=.5), Influence(), FineTune(n_epoch=1, lr=1e-3),
                                 NegGradPlus(n_epoch=1, lr=1e-3),
                                 RandomLabel(joint=True, n_epoch=1, lr=1e-3), SalUn(n_epoch=1, lr=1e-3),
                                 SFRon(n_epoch=1, iters=5, every=2, lr=1e-4),
                                 AMUN(n_epoch=1, lr=1e-3)], ids=lambda o: o.name)
@pytest.mark.parametrize('plain', [True, False], ids=['plain', 'weighted'])
def test_reduction_does_not_change_the_result(learn, how, plain):
    split = ForgetSplit(learn.dls, range(9))
    w = None if plain else weight/17
    models = [unlearn(with_loss(learn, nn.CrossEntropyLoss(w, reduction=o)), split, how, quiet=True).model
              for o in ('mean', 'sum')]
    for a, b in zip(*(m.parameters() for m in models)): torch.testing.assert_close(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(models[0].parameters(), learn.model.parameters()))

def test_fisher_depends_on_class_weights(learn):
    split = ForgetSplit(learn.dls, range(9))
    a, b = (unlearn(with_loss(learn, nn.CrossEntropyLoss(o)), split, Fisher(alpha=1e-4), quiet=True).model
            for o in (None, weight))
    assert all((p-q).abs().max() > 1e-4 for p, q in zip(a.parameters(), b.parameters()))

def test_the_loss_of_a_mixed_batch_is_the_mean_of_the_whole_batch(learn):
    "Descent on both parts of a mixed batch is descent on the whole batch, also with class weights"
    class Both(RandomLabel):
        def labels(self, at): return self.true[at]
    class Checked(Both):
        def objective(self, pred, *yb):
            res = super().objective(pred, *yb)
            if self.training:
                torch.testing.assert_close(res, self.own_loss(pred, *yb))
                checked.append(res)
            return res
    checked = []
    unlearn(with_loss(learn, nn.CrossEntropyLoss(weight)), ForgetSplit(learn.dls, 'class:2'),
            Checked(joint=True, n_epoch=1, bs=16, lr=1e-3), quiet=True)
    assert len(checked) == 4

def own(logits, y): return F.cross_entropy(logits, y, weight)

@pytest.mark.parametrize('act', [lambda learn, split: GradNorm().rank(learn, split),
                                 lambda learn, split: Curvature().rank(learn, split),
                                 *(lambda learn, split, how=how: unlearn(learn, split, how, quiet=True)
                                   for how in (SSD(), Fisher(), Influence(), SFRon()))])
def test_a_loss_without_a_value_per_sample_is_refused(learn, act):
    with pytest.raises(InputError, match='a single sample has no loss of its own.*reduction'):
        act(with_loss(learn, own), ForgetSplit(learn.dls, range(9)))
    act(with_loss(learn, lambda logits, y: F.cross_entropy(logits, y)), ForgetSplit(learn.dls, range(9)))
