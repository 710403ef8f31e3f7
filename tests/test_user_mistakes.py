"Mistakes in a user's algorithm, model, settings or data are reported in one sentence before anything changes."
import copy

import numpy as np, pytest, torch
from torch import nn
from torch.utils.data import (BatchSampler, DataLoader as TorchLoader, Dataset, IterableDataset, RandomSampler, Sampler,
                              SequentialSampler, TensorDataset, WeightedRandomSampler)
from fastai.data.core import DataLoaders
from fastai.callback.core import Callback, CancelEpochException
from fastai.data.load import DataLoader
from fastai.learner import Learner
from rsu.all import *
from rsu.core.store import read_shard
from rsu.core.data import Samples
from rsu.algorithms.many import alone
from rsu.erasure.stream import drift
from rsu.algorithms.base import Algorithm, Term
from rsu.core.config import InputError


class Two(Algorithm):
    "Passes over both roles; a subclass gives the terms."
    n_epoch: int = 1
    def passes(self, epoch): return (('retain', 'forget'),)

class Misspelt(Two):
    def terms(self, epoch): return Term('retain'), Term('froget', weight=-1.)

class UnknownLoss(Two):
    def terms(self, epoch): return Term('retain'), Term('forget', 'preference')

class MisspeltPass(Two):
    def passes(self, epoch): return (('retain', 'frget'),)
    def terms(self, epoch): return Term('retain'),

class Idle(Two):
    n_epoch: int = 3
    def passes(self, epoch): return (('retain',), ('forget',))
    def terms(self, epoch): return (Term('retain'), Term('forget', weight=-1.)) if epoch < 2 else (Term('retain'),)

class Mixed(Two):
    def passes(self, epoch): return (('mixed',),)
    def terms(self, epoch): return Term('retain'), Term('mixed', weight=5.)

class Passless(Two):
    n_epoch: int = 2
    def passes(self, epoch): return (('retain',),) if epoch else ()
    def terms(self, epoch): return Term('retain'),

@pytest.mark.parametrize('how, words', [
    (Misspelt(), 'froget'), (UnknownLoss(), 'preference'), (MisspeltPass(), 'frget'),
    (Idle(), 'a pass over forget in epoch 3 and no term'), (Mixed(), "the role 'mixed'"),
    (Passless(), 'no pass in epoch 1')])
def test_inconsistent_passes_and_terms_are_refused(how, words, learn, split):
    with pytest.raises(InputError, match=words): learn.unlearn(split, how, quiet=True)

class Beside(Two):
    "A loss that pairs batches; its only term is on the retain batch."
    def terms(self, epoch): return Term('retain', 'apart'),
    def measure(self, t, logits, xb, y, at):
        (*other, _), = [b for role, (_, b) in self.learn.dls.train.now.items() if role == 'forget']
        return self.own_loss(logits, y) - .01*self.model(*other).square().mean()

class Sparse(Two):
    "A joint pass in which few samples have a term, so that some batches have none."
    def passes(self, epoch): return (('mixed',),)
    def terms(self, epoch): return Term('forget', weight=-1.),

class Own(Two):
    "An objective that uses no terms."
    def terms(self, epoch): return ()
    def objective(self, pred, *yb): return self.own_loss(pred, *yb)

class Passes(SCRUB):
    def passes(self, epoch): return ('forget',), ('retain',)

@pytest.mark.parametrize('how', [Beside(), Sparse(bs=2, lr=1e-5), Own(), Passes(n_epoch=4)])
def test_unusual_but_consistent_algorithms_run(how, learn, split):
    assert learn.unlearn(split, how, quiet=True).unlearning.steps

@pytest.mark.parametrize('name', ['seed', 'until', 'retain_before'])
def test_reserved_setting_names_are_refused(name):
    with pytest.raises(InputError, match=f"called '{name}'"):
        type('Taken', (Two,), {'__annotations__': {name: float}, name: 1.})

class Cancelled(Callback):
    def before_train(self): raise CancelEpochException

@pytest.mark.parametrize('how', [FineTune(n_epoch=1), EUk(n_epoch=1)])
def test_cancelled_epochs_count_no_steps(how, learn, split):
    assert learn.unlearn(split, how, cbs=Cancelled(), quiet=True).unlearning.steps == 0

class Pair(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x): return self.net(x), 0

def twin(learn, model):
    one = copy.copy(learn)
    one.model = model
    return one

def test_unsuitable_models_are_refused(learn, split):
    frozen = twin(learn, copy.deepcopy(learn.model).requires_grad_(False))
    for how in (SCRUB(n_epoch=1), FineTune(n_epoch=1), SSD()):
        with pytest.raises(InputError, match='All parameters of the model are frozen'):
            frozen.unlearn(split, how, quiet=True)
    with pytest.raises(InputError, match='gives a tuple'):
        twin(learn, Pair(learn.model)).unlearn(split, SCRUB(n_epoch=1), quiet=True)
    five_logits = twin(learn, nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    with pytest.raises(InputError, match='0 to 9 and the model has 5 logits'):
        five_logits.unlearn(split, SCRUB(n_epoch=1), quiet=True)
    with pytest.raises(InputError, match='0 to 9 and the model has 5 logits'):
        compare_orders(five_logits, Ranking.from_scores(split, np.arange(12.)), quiet=True)
    with pytest.raises(InputError, match='not a ForgetSplit'): learn.unlearn([1, 2], SCRUB(n_epoch=1), quiet=True)

def test_bad_settings_are_refused(learn, split):
    risk = Ranking.from_scores(split, np.arange(12.))
    fits = []
    class CountFits(Callback):
        def before_fit(self): fits.append(1)
    with pytest.raises(InputError, match='until='):
        learn.unlearn(risk, SeqUnlearn(SSD(), 2, until=.1), cbs=CountFits(), quiet=True)
    assert not fits
    for bad, words in [(lambda: FineTune(opt='sdg'), "opt='sdg'"), (lambda: FineTune(lr=None), 'lr=None'),
                       (lambda: FineTune(n_epoch=None), 'n_epoch=None'), (lambda: Retrain(opt='sdg'), "opt='sdg'"),
                       (lambda: Retrain(n_epoch=0), 'n_epoch=0'), (lambda: SeqUnlearn((FineTune(), SCRUB), 2), 'SCRUB'),
                       (lambda: UNSIR(repeats=0), 'repeats=0'), (lambda: UNSIR(penalty=-1.), 'penalty=-1.0'),
                       (lambda: UNSIR(noise_lr=0.), 'noise_lr=0.0'), (lambda: UNSIR(per_class=.5), 'per_class=0.5'),
                       (lambda: SCRUB(T=0.), 'T=0.0'), (lambda: SCRUB(alpha=float('nan')), 'alpha=nan'),
                       (lambda: SCRUB(msteps=-1), 'msteps=-1'), (lambda: SCRUB(alpha=None), 'alpha=None'),
                       (lambda: SFRon(clip=0.), 'clip=0.0'), (lambda: SFRon(alpha=-1.), 'alpha=-1.0'),
                       (lambda: SFRon(every=2.5), 'every=2.5'), (lambda: Influence(alpha=-1.), 'alpha=-1.0'),
                       (lambda: Fisher(alpha=float('inf')), 'alpha=inf'), (lambda: SISA(shards=2.5), 'shards=2.5'),
                       (lambda: Retrain(bs_forget=4), 'bs_forget would change nothing'), (lambda: CFk(k=1.5), 'k=1.5'),
                       (lambda: AMUN(steps=2.5), 'steps=2.5'), (lambda: NegGradPlus('a'), "alpha='a'"),
                       (lambda: SeqUnlearn(SCRUB(), repair=Retrain()), 'on retained samples alone'),
                       (lambda: SeqUnlearn(SCRUB(), repair=MSG()), 'on retained samples alone'),
                       (lambda: SeqUnlearn(SCRUB(), rerank=LiRA), 'needs more than the model'),
                       (lambda: SeqUnlearn(SCRUB(), 2.5), 'groups=2.5'), (lambda: Quantiles('3'), "n='3'"),
                       (lambda: ByChance(2.5), 'n=2.5'), (lambda: Thresholds(.5), 'at=0.5'),
                       (lambda: EUk().budget(split), 'determines how long EUk trains')]:
        with pytest.raises(InputError, match=words): bad()
    with pytest.raises(InputError, match='One retained sample'):
        learn.unlearn(ForgetSplit(learn.dls, range(1, 200)), Retrain(), quiet=True)

def test_settings_may_be_numpy_scalars(learn, split):
    how = CFk(k=np.int64(1), n_epoch=np.int64(1), lr=np.float32(1e-3), wd=np.float32(1e-4))
    assert Algorithm.from_json(how.to_json()).k == 1
    assert learn.unlearn(split, how, quiet=True, until=np.float32(0)).unlearning.steps == 1
    assert SeqUnlearn(SCRUB(), np.int64(2)) == SeqUnlearn(SCRUB(), 2)
    assert SeqUnlearn(SCRUB(), repair=EUk()).repair == EUk() # the learner's recipe gives its number of epochs

def test_unlearning_does_not_advance_the_callers_loaders(learn, split):
    given = copy.copy(learn)
    given.dls = with_train(learn.dls, subset(learn.dls.train, np.arange(200), seed=3))
    before = given.dls.train.get_idxs.k
    given.unlearn(ForgetSplit(given.dls, split.forget), BadTeacher(), quiet=True)
    assert given.dls.train.get_idxs.k == before

class Rows(Dataset):
    def __init__(self, y): self.x, self.y = torch.randn(len(y), 1, 8, 8), y
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i], self.y[i]

class Stream(IterableDataset):
    def __iter__(self): yield from Rows(torch.zeros(10, dtype=torch.long))

class Words(Rows):
    def __getitem__(self, i): return dict(x=self.x[i], y=self.y[i])

y = torch.arange(60) % 10
rows = Rows(y)

named = [f'class {i}' for i in y.tolist()]
@pytest.mark.parametrize('data, words', [(Rows(named), 'class of each sample, a whole number'),
                                         (Rows(nn.functional.one_hot(y).float()), 'one class per sample'),
                                         (Rows(y.float()), 'one class per sample'), (Words(y), 'must be tensors')])
def test_data_without_one_whole_label_per_sample_are_refused(data, words):
    dls = DataLoaders(TorchLoader(data, 16), TorchLoader(rows, 16))
    with pytest.raises(InputError, match=words): ForgetSplit(dls, [1, 2]).y

def test_data_without_a_length_are_refused():
    dls = DataLoaders(TorchLoader(Stream(), 16), TorchLoader(rows, 16))
    with pytest.raises(InputError, match='no length'): ForgetSplit(dls, [1, 2])

class Some(Sampler):
    def __init__(self, at): self.at = at
    def __iter__(self): yield from self.at
    def __len__(self): return len(self.at)

weights = np.where(np.arange(60) < 20, 0., 1.)

@pytest.mark.parametrize('loader, at', [
    (TorchLoader(rows, 16, sampler=list(range(20, 50))), range(20, 50)),
    (TorchLoader(rows, 16, sampler=WeightedRandomSampler(weights, 60)), range(20, 60)),
    (TorchLoader(rows, 16, sampler=RandomSampler(rows, num_samples=30)), range(60)),
    (TorchLoader(rows, 16, sampler=Some(range(59, -1, -1))), range(60)),
    (TorchLoader(rows, batch_sampler=BatchSampler(SequentialSampler(rows), 16, False)), range(60)),
    (TorchLoader(rows, batch_sampler=BatchSampler(list(range(20, 50)), 16, False)), range(20, 50)),
    (DataLoader(rows, bs=16, n=40), range(40))])
def test_the_samples_of_a_loader_are_found(loader, at):
    assert indices(loader).tolist() == list(at)
    split = ForgetSplit(DataLoaders(loader, TorchLoader(rows, 16)), [at[0]])
    assert sorted([*split.retain, at[0]]) == list(at)

def test_a_sampler_of_unknown_samples_is_refused():
    with pytest.raises(InputError, match='Some does not say'):
        indices(TorchLoader(rows, 16, sampler=Some(range(30))))

def test_labels_are_read_from_the_current_loaders():
    dls = digits(n=100)
    x, y = dls.train_ds.tensors
    first = with_train(dls, IndexLoader(TensorDataset(x, y), bs=16))
    targets(first)
    other = (y+1) % 10
    assert (targets(with_train(first, IndexLoader(TensorDataset(x, other), bs=16))) == other.numpy()).all()

def test_a_splitter_prevents_stacked_training(learn, split):
    head = copy.copy(learn)
    head.splitter = lambda m: [list(m[-1].parameters())]
    how = NegGradPlus(n_epoch=1)
    assert alone(learn, split, how) == '' and 'part of the network' in alone(head, split, how)

def test_shared_weights_prevent_stacked_training(learn, split):
    tied = twin(learn, nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64),
                                     nn.Linear(64, 10)))
    assert alone(tied, split, NegGradPlus(n_epoch=1)) == ''
    tied.model[3].weight = tied.model[1].weight
    assert 'side by side' in alone(tied, split, NegGradPlus(n_epoch=1))

class Noisy(Rows):
    "As fastai's `Datasets`: noise is added only while `split_idx` is that of the training set."
    split_idx = 0
    def set_split_idx(self, i):
        from contextlib import contextmanager
        @contextmanager
        def turn():
            was, self.split_idx = self.split_idx, i
            try: yield
            finally: self.split_idx = was
        return turn()
    def __getitem__(self, i): return self.x[i] + (torch.randn(1, 8, 8) if self.split_idx == 0 else 0), self.y[i]

def test_rankers_use_samples_without_augmentation():
    dls = DataLoaders(DataLoader(Noisy(y), bs=16), DataLoader(rows, bs=16), device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss())
    for ranker in (Confidence(), GradNorm(), Curvature()):
        one, two = (ranker.score(learn, np.arange(9)) for _ in range(2))
        assert (one == two).all(), ranker

class CopyMade(Callback):
    "Copies the samples that an algorithm has made before its first step."
    def __init__(self): self.made = []
    def before_train(self): self.made.append([t.clone() for t in self.learn.dls.train.made])

def test_algorithms_use_samples_without_augmentation():
    # outside the steps: importance, curvature and adversarial samples do not depend on the noise of training
    torch.manual_seed(4) # with some seeds an untrained network predicts one class for all, which counts as divergence
    pixels = Noisy(y)
    pixels.x = pixels.x.sigmoid()
    dls = DataLoaders(DataLoader(pixels, bs=16), DataLoader(rows, bs=16), device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss())
    split = ForgetSplit(dls, range(5))
    for how in (SSD(alpha=.5), LFSSD(alpha=.5), Influence()): # whose results do not depend on the seed
        one, two = (weights_hash(learn.unlearn(split, how, seed=k, quiet=True).model) for k in range(2))
        assert one == two != weights_hash(learn.model), how
    copies = CopyMade()
    for k in range(2): # AMUN refuses inputs outside [0, 1], where noise would take them
        learn.unlearn(split, AMUN(n_epoch=1, lr=1e-4), seed=k, cbs=copies, quiet=True)
    assert all(map(torch.equal, *copies.made)) and (copies.made[0][1] != y[:5]).any()

class CollectLabels(Callback):
    def __init__(self, labels): self.labels = labels
    def before_batch(self):
        if self.training: self.labels.append(self.yb[0].cpu())

def test_retraining_uses_the_sampling_weights(learn):
    from fastai.callback.data import WeightedDL
    n, drawn = len(learn.dls.train_ds), []
    rare = np.where(targets(learn.dls) == 5, 1e-9, 1.)
    ours = WeightedDL(learn.dls.train_ds, bs=32, shuffle=True, wgts=rare, num_workers=0)
    theirs = TorchLoader(TensorDataset(*learn.dls.train_ds.tensors), 32, sampler=WeightedRandomSampler(rare, n))
    recipe = Recipe(small_cnn, n_epoch=1)
    def train(dls):
        new = recipe.learner(dls, 0)
        with new.no_bar(), new.no_logging(): new.fit(1)
        return new
    for dls in (with_train(learn.dls, o) for o in (ours, theirs)):
        for how in (recipe, train): # an oracle of either kind of recipe
            drawn.clear()
            make(how, dls, np.arange(n//2), 0, cbs=CollectLabels(drawn))
            y = torch.cat(drawn)
            assert n//2-32 <= len(y) <= n//2 and not (y == 5).any()
        assert why_not_stacked(recipe, dls) # stacked training would draw each sample once
        assert fingerprint(dls) != fingerprint(learn.dls)

def tensors(file): return read_shard(file)[0]

def test_a_stream_refuses_unsuitable_banks_and_oracles(learn, tmp_path):
    bare = Learner(learn.dls, learn.model, learn.loss_func)
    bank = ReferenceBank.fit(learn, 2, tmp_path/'bank', quiet=True)
    without_valid = [{k: v for k, v in o.items() if k != 'phi_valid'} for o in map(tensors, bank.shards)]
    for one, options, words in [(learn, dict(oracles=1), 'oracles=1'),
                                (bare, dict(oracles=2), 'not known how the model was trained'),
                                (learn, dict(bank=ReferenceBank(without_valid, bank.y)), 'validation')]:
        with pytest.raises(InputError, match=words):
            one.unlearn_stream([[1, 2]], NegGradPlus(n_epoch=1), tmp_path/'ledger', quiet=True, **options)
    assert not (tmp_path/'ledger').exists()

def test_drift_is_measured_on_the_samples_of_the_validation_loader(tmp_path):
    learn = Recipe(small_cnn, n_epoch=6, lr=5e-3).fit(digits(n=200), quiet=True)
    bank = ReferenceBank.fit(learn, 4, tmp_path, quiet=True)
    half, forget = np.arange(0, len(learn.dls.valid_ds), 2), np.arange(40)
    x, y = (t[half] for t in learn.dls.valid_ds.tensors)
    train, _, test = learn.dls.loaders
    by_loader, by_data = copy.copy(learn), copy.copy(learn)
    by_loader.dls = copy.copy(learn.dls)
    by_loader.dls.loaders = [train, subset(learn.dls.valid, half), test]
    by_data.dls = loaders(train.dataset, Samples(x, y, train.dataset.vocab), test.dataset)
    half_bank = ReferenceBank([dict(o, phi_valid=o['phi_valid'][half]) for o in map(tensors, bank.shards)], bank.y)
    assert drift(by_loader, .5, forget, bank) == drift(by_data, .5, forget, half_bank)

class Net(nn.Sequential):
    def __init__(self, c_in): super().__init__(nn.Conv2d(c_in, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

@pytest.mark.parametrize('loader', [TorchLoader, DataLoader], ids=["PyTorch's", "fastai's"])
def test_loaders_without_a_device_work(loader, tmp_path):
    dls = DataLoaders(*(loader(rows, 16) for _ in range(3)))
    learn = Recipe(Net, n_epoch=1).fit(dls, quiet=True)
    split = ForgetSplit(dls, [1, 2])
    (_, one), = unlearn_many(learn, [(split, NegGradPlus(n_epoch=1), 0)], quiet=True)
    two = learn.unlearn(split, NegGradPlus(n_epoch=1), quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters()))
    bank = ReferenceBank.fit(learn, 2, tmp_path, quiet=True)
    assert np.isfinite(PrivacyRisk(bank).score(learn, [1, 2])).all() and len(evaluate(one, oracles=2, quiet=True))
