"""A recipe that is a function, with a fastai fit or its own training loop.
The samples that it trains on are checked, and its cost is measured."""
import warnings

import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from rsu.core.indexing import indices, subset_dls
from rsu.core.split import ForgetSplit
from rsu.evaluation.evaluate import evaluate, fit_oracles
from rsu.algorithms.exact import SISA, Retrain, Sharded
from rsu.core.recipe import Recipe, make
from rsu.ranking.bank import ReferenceBank
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.core.config import InputError

x, y = torch.randn(80, 6, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 2
def parts(): return [TensorDataset(x[at], y[at]) for at in (slice(0, 40), slice(40, 60), slice(60, 80))]
def user_dls(): return DataLoaders(*(DataLoader(o, 8) for o in parts()))
def net(): return nn.Linear(6, 2)

def fitted(dls, **kwargs):
    learn = Learner(dls, net(), nn.CrossEntropyLoss(), **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn

def looped(dl, dls):
    "The user's own loop."
    model = net()
    opt = torch.optim.SGD(model.parameters(), .1)
    for xb, yb in dl:
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()
    return Learner(dls, model, nn.CrossEntropyLoss())

full = user_dls()
honest = dict(fit=fitted, loop=lambda dls: looped(dls.train, dls),
              derived=lambda dls: fitted(DataLoaders(dls.train.new(bs=4), dls.valid)),
              subset=lambda dls: fitted(DataLoaders(DataLoader(Subset(dls.train_ds, indices(dls.train).tolist()), 8),
                                                    dls.valid)),
              indices=lambda dls: looped([dls.train_ds[i:i+1] for i in dls.train.get_idxs()], full),
              part=lambda dls: fitted(subset_dls(dls, indices(dls.train)[:16])),
              recipe=lambda dls: Recipe(net, n_epoch=1).fit(dls, quiet=True))
astray = dict(fit=lambda dls: fitted(full), loop=lambda dls: looped(full.train, full),
              again=lambda dls: fitted(user_dls()),
              new=lambda dls: fitted(DataLoaders(DataLoader(dls.train_ds, 8), dls.valid)),
              peek=lambda dls: (dls.one_batch(), fitted(DataLoaders(DataLoader(dls.train_ds, 8), dls.valid)))[1])

@pytest.mark.parametrize('recipe', honest.values(), ids=honest)
def test_recipes_that_train_on_the_given_loaders_are_accepted(recipe):
    learn = make(recipe, full, np.arange(5, 40), seed=0)
    assert learn.dls is full and not [cb for cb in learn.cbs if type(cb).__module__.startswith('rsu')]

@pytest.mark.parametrize('recipe', astray.values(), ids=astray)
def test_recipes_that_train_on_other_samples_are_refused(recipe, tmp_path):
    learn = fitted(full)
    learn.recipe = recipe
    split = ForgetSplit(full, range(5))
    for act in (lambda: make(recipe, full, np.arange(5, 40), 0), lambda: unlearn(learn, split, Retrain(), quiet=True),
                lambda: fit_oracles(learn, split, 1, quiet=True),
                lambda: ReferenceBank.fit(learn, 2, tmp_path/'bank', quiet=True)):
        with pytest.raises(InputError, match='train on the loaders in its argument'): act()

def test_sharded_training_is_accepted():
    learn = SISA(2, 2).fit(full, Recipe(net, n_epoch=1))
    assert isinstance(learn.recipe, Sharded)
    assert unlearn(learn, ForgetSplit(full, range(5)), Retrain(), quiet=True).unlearning.steps > 0

def test_an_own_training_loop_is_measured_by_its_time(tmp_path):
    learn = looped(full.train, full)
    learn.recipe = honest['loop']
    split = ForgetSplit(full, range(5))
    with pytest.warns(UserWarning, match=r'steps and samples were not counted \(NaN\), '
                                         'and its seconds are those of the whole function'):
        rec = unlearn(learn, split, Retrain(), quiet=True).unlearning
    assert np.isnan(rec.steps) and np.isnan(rec.cost['samples']) and rec.seconds > 0 and 'nan' not in repr(rec)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fitted, again = (fit_oracles(learn, split, 2, tmp_path, quiet=True) for _ in range(2))
        assert [o.unlearning.seconds for o in fitted] == [o.unlearning.seconds for o in again]
        assert np.isnan(again[0].unlearning.steps)
        table = evaluate(unlearn(learn, split, FineTune(n_epoch=1), quiet=True), oracles=again, controls=())
    assert np.isfinite(table.ratio).all() and table.loc['retrain','ratio'] == pytest.approx(1)

def test_steps_and_samples_of_a_fit_are_counted():
    learn = fitted(full)
    learn.recipe = fitted
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rec = unlearn(learn, ForgetSplit(full, range(5)), Retrain(), quiet=True).unlearning
    assert (rec.steps, rec.cost['samples']) == (5, 35)
