"A stored result is used only for the inputs that made it."
import copy
from functools import partial

import numpy as np, pytest, torch
from torch import nn
from torch.nn import functional as F
from fastai.losses import CrossEntropyLossFlat
from rsu.all import *
from rsu.core.data import Samples
from rsu.core.recipe import loss_key
from rsu.core.config import InputError


def halved(dls, part):
    "The loaders with a half of the validation samples."
    n = len(dls.valid_ds)//2
    x, y = (t[part*n:(part+1)*n] for t in dls.valid_ds.tensors)
    return loaders(dls.train_ds, Samples(x, y, dls.train_ds.vocab), dls.loaders[2].dataset)

def test_stored_stages_of_other_groups_loss_or_samples_are_refused(learn, split, tmp_path):
    how = SeqUnlearn(NegGradPlus(n_epoch=1, bs=16), 2)
    one, other = (Ranking.from_scores(split, o) for o in (np.arange(12.), -np.arange(12.)))
    learn.unlearn(one, how, path=tmp_path, quiet=True)
    with pytest.raises(InputError, match='differs in groups'): learn.unlearn(other, how, path=tmp_path, quiet=True)
    smooth = copy.copy(learn)
    smooth.loss_func = CrossEntropyLossFlat(label_smoothing=.9)
    with pytest.raises(InputError, match='differs in loss function'):
        smooth.unlearn(one, how, path=tmp_path, quiet=True)
    few = ForgetSplit(learn.dls, split.forget, test=subset(learn.dls.loaders[2], range(40)))
    with pytest.raises(InputError, match='differs in validation and test samples'):
        learn.unlearn(Ranking.from_scores(few, np.arange(12.)), how, path=tmp_path, quiet=True)

def test_a_stored_study_is_not_used_for_other_groups(learn, split, tmp_path):
    options = dict(algorithms=NegGradPlus(n_epoch=1, bs=16), seeds=range(1), orders=('descending',), oracles=2,
                   quiet=True)
    risk = Ranking.from_scores(split, np.arange(12.))
    compare_orders(learn, risk, groups=3, path=tmp_path, **options)
    in_same_folder = compare_orders(learn, risk, groups=2, path=tmp_path, **options)
    without_folder = compare_orders(learn, risk, groups=2, **options)
    columns = ['algorithm', 'order', 'seed', 'group', 'n', 'forget']
    assert sorted(in_same_folder[columns].values.tolist()) == sorted(without_folder[columns].values.tolist())

def test_a_bank_of_other_validation_samples_is_refused(learn, tmp_path):
    recipe = learn.recipe
    one, other = (recipe.learner(halved(learn.dls, k)) for k in (0, 1))
    ReferenceBank.fit(one, 2, tmp_path, quiet=True)
    with pytest.raises(InputError, match='validation samples'): ReferenceBank.fit(other, 2, tmp_path, quiet=True)
    part = recipe.learner(copy.copy(one.dls))
    part.dls.loaders = [one.dls.loaders[0], subset(one.dls.valid, range(9)), one.dls.loaders[2]]
    assert len(ReferenceBank.fit(part, 2, tmp_path, quiet=True)) == 2 # a part of the same samples

def trained(dls, lr): return Recipe(small_cnn, n_epoch=1, lr=lr).fit(dls, quiet=True)

def closing(lr):
    def train(dls): return trained(dls, lr)
    return train

@pytest.mark.parametrize('make', [lambda lr: partial(trained, lr=lr), closing], ids=['partial', 'closure'])
def test_recipes_are_distinguished_by_the_values_that_they_hold(make, learn, split, tmp_path):
    from rsu.evaluation.evaluate import fit_oracles
    def oracle(lr, path):
        one = copy.copy(learn)
        one.recipe = make(lr)
        return fit_oracles(one, split, 1, path, quiet=True)[0].model.state_dict(), one
    (slow, one), (fast, two) = oracle(1e-4, tmp_path), oracle(1e-2, tmp_path)
    assert any(not torch.equal(slow[k], fast[k]) for k in slow)
    again = oracle(1e-4, tmp_path)[0]
    assert all(torch.equal(slow[k], again[k]) for k in slow) and len(list(tmp_path.glob('oracle-*'))) == 2
    ReferenceBank.fit(one, 2, tmp_path/'bank', quiet=True)
    with pytest.raises(InputError, match='differs in recipe'): ReferenceBank.fit(two, 2, tmp_path/'bank', quiet=True)

class Own(nn.Module):
    def __init__(self, smooth):
        super().__init__()
        self.ce = nn.CrossEntropyLoss(label_smoothing=smooth)
    def forward(self, logits, y): return self.ce(logits, y)

class Called:
    "A loss that is neither a function nor a module."
    def __init__(self, smooth): self.smooth = smooth
    def __call__(self, logits, y): return F.cross_entropy(logits, y, label_smoothing=self.smooth)
    def again(self, logits, y): return self(logits, y)

def test_different_losses_have_different_keys():
    losses = [CrossEntropyLossFlat(), CrossEntropyLossFlat(label_smoothing=.1),
              partial(F.cross_entropy, label_smoothing=.2), partial(F.cross_entropy, label_smoothing=.8),
              partial(F.multi_margin_loss), lambda l, y: F.multi_margin_loss(l, y),
              Own(.1), Own(.8), Called(.1), Called(.8), Called(.1).again, Called(.8).again,
              nn.CrossEntropyLoss(weight=torch.ones(10)), nn.CrossEntropyLoss(weight=torch.arange(10.))]
    assert len({loss_key(o) for o in losses}) == len(losses)
    assert loss_key(nn.CrossEntropyLoss()) == loss_key(CrossEntropyLossFlat()) == loss_key(None) == ''
    for o in (Own, Called): assert loss_key(o(.1)) == loss_key(o(.1))

def test_a_finished_run_is_refused_for_other_test_samples(here, no_report, capsys, monkeypatch):
    (here/'mine.py').write_text('''
import os
from rsu.all import *
from rsu.core.data import Samples
def get():
    dls = digits(n=200)
    k, (x, y) = int(os.environ['PART']), dls.loaders[2].dataset.tensors
    return loaders(dls.train_ds, dls.valid_ds, Samples(x[k*50:(k+1)*50], y[k*50:(k+1)*50], dls.train_ds.vocab))
''', encoding='utf-8')
    monkeypatch.syspath_prepend(here)
    options = ('--data mine:get --forget random:8 --ranker confidence --groups 1 --oracles 2 --train-epochs 1 '
               '--algorithm neggradplus --n-epoch 4 --out out').split()
    monkeypatch.setenv('PART', '0')
    assert no_report(*options) == 0 and no_report(*options) == 0
    monkeypatch.setenv('PART', '1')
    assert no_report(*options) == 2 and 'differs in validation or test samples' in capsys.readouterr().err

def test_a_sisa_state_with_other_slices_is_refused():
    dls, recipe = digits(n=120), Recipe(small_cnn, n_epoch=1)
    three, two = (SISA(2, k).fit(dls, recipe) for k in (3, 2))
    for a, b in ((three, two), (two, three)):
        with pytest.raises(RuntimeError, match='members'): a.model.load_state_dict(b.model.state_dict())
    three.model.load_state_dict(SISA(2, 3).fit(dls, recipe, seed=1).model.state_dict())
