"""A request made from a training loader alone, without validation and test samples.
Functions that need such samples refuse before any work; everything else works."""
from functools import cache

import numpy as np, pytest, torch
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from rsu.all import *

def net(): return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

generator = torch.Generator().manual_seed(0)
y = torch.arange(120) % 3
x = torch.randn(120, 6, generator=generator) + 2*nn.functional.one_hot(y, 6)
def loader(a, b): return DataLoader(TensorDataset(x[a:b], y[a:b]), 16, shuffle=a == 0)

@cache
def trained():
    "A learner with validation samples of its own"
    return Recipe(net, n_epoch=3).fit(DataLoaders(loader(0, 80), loader(80, 120)), quiet=True)
def alone(forget='random:20'): return ForgetSplit(loader(0, 80), forget)
@cache
def bank(): return ReferenceBank.fit(trained(), n=8, quiet=True)

def test_the_request_equals_that_of_three_loaders():
    whole = ForgetSplit((loader(0, 80), loader(80, 100), loader(100, 120)), 'random:20')
    assert alone().key == whole.key and (alone().retain == whole.retain).all()
    assert repr(alone()) == 'ForgetSplit: forget 20, retain 60, valid 0, test 0 samples'

@pytest.mark.parametrize('how', [FineTune(), NegGradPlus(), RandomLabel(), SCRUB(), SalUn(), SSD(), Retrain(),
                                 SeqUnlearn(NegGradPlus(bs=16), 2)], ids=repr)
@pytest.mark.parametrize('quiet', [True, False])
def test_unlearning_keeps_the_learners_validation_set(how, quiet, tmp_path):
    learn = trained()
    split = Confidence().rank(learn, alone()) if isinstance(how, SeqUnlearn) else alone()
    new = learn.unlearn(split, how, quiet=quiet, path=tmp_path if isinstance(how, SeqUnlearn) else None)
    assert len(new.dls.valid_ds) == 40 and len(new.validate()) >= 1
    stages = new.unlearning.stages
    assert stages.forget.notna().all() and stages.retain.notna().all()
    assert stages.valid.isna().all() and stages.test.isna().all()
    again = ForgetSplit(new.dls, split.retain[:3])
    assert new.unlearn(again, FineTune(n_epoch=1), quiet=True).unlearning.stages.valid.notna().all()

@pytest.mark.parametrize('quiet', [True, False])
def test_unlearning_works_on_a_learner_without_validation_set(quiet):
    split = alone()
    learn = Learner(split.dls, trained().model, nn.CrossEntropyLoss())
    new = learn.unlearn(split, NegGradPlus(n_epoch=2), quiet=quiet)
    assert np.isnan(new.unlearning.before['valid'])
    with pytest.raises(InputError, match='EarlyStoppingCallback reads results of validation, and there are no'):
        learn.unlearn(split, FineTune(), cbs=EarlyStoppingCallback(), quiet=quiet)
    one = new.unlearn(ForgetSplit(new.dls, split.retain[:3]), FineTune(n_epoch=1), quiet=quiet)
    assert np.isnan(one.unlearning.before['valid'])

fed = [Confidence(), Entropy(), Random()]
@pytest.mark.parametrize('ranker', fed, ids=lambda o: type(o).__name__)
def test_rankers_that_use_only_the_model_work(ranker): assert len(ranker.rank(trained(), alone()).scores) == 20
def test_rankers_that_use_a_bank_work(): assert len(LiRA(bank()).rank(trained(), alone()).scores) == 20

def never(*args, **kwargs): raise AssertionError('work was done before the refusal')

needing = dict(
    evaluate=lambda s: evaluate(trained().unlearn(s, FineTune(n_epoch=1), quiet=True), oracles=2),
    stages=lambda s: evaluate_stages(trained().unlearn(s, FineTune(n_epoch=1), quiet=True), 2),
    compare=lambda s: compare_orders(trained(), Confidence().rank(trained(), s), oracles=2),
    tune=lambda s: tune(trained(), s, SCRUB()),
    rmia=lambda s: RMIA(bank()).rank(trained(), s),
    holdout=lambda s: HoldoutRetrain().rank(trained(), s),
    until=lambda s: trained().unlearn(s, SCRUB(), until='valid'),
    later=lambda s: trained().unlearn(Confidence().rank(trained(), s),
                                      SeqUnlearn(SCRUB(bs=8, bs_forget=4), 2, until=(.5, 'valid'))),
    rewind=lambda s: trained().unlearn(s, SCRUB(rewind=True)),
    exposure=lambda s: exposure(trained(), s, bank()),
    margins=lambda s: plot_margins({'model': trained()}, s, trained()))
@pytest.mark.parametrize('name', needing)
def test_functions_that_need_other_samples_refuse_before_any_work(name, monkeypatch):
    bank(), trained()
    for module in ('evaluate', 'tune'): monkeypatch.setattr(f'rsu.evaluation.{module}.fit_oracles', never)
    if name in ('until', 'later', 'rewind'): monkeypatch.setattr(SCRUB, 'forget', never)
    words = 'There are no (validation|test) samples, which are needed here: .*loaders .train, valid'
    with pytest.raises(InputError, match=words): needing[name](alone())

def test_a_stream_refuses(tmp_path):
    split = alone()
    learn = Learner(split.dls, trained().model, nn.CrossEntropyLoss())
    with pytest.raises(InputError, match='There are no validation samples'):
        learn.unlearn_stream([[3]], FineTune(n_epoch=1), tmp_path/'ledger', quiet=True)
