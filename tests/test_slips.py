"Slips in a class of one's own, in a model or in data: one sentence before anything is changed."
import copy

import numpy as np, pytest, torch
from torch import nn
from torch.utils.data import DataLoader as TorchLoader, Dataset, IterableDataset, RandomSampler, Sampler, SequentialSampler, WeightedRandomSampler, BatchSampler, TensorDataset
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

@pytest.fixture(scope='module')
def learn(): return Recipe(small_cnn, n_epoch=1, lr=5e-3).fit(digits(n=200), quiet=True)

@pytest.fixture
def split(learn): return ForgetSplit(learn.dls, 'random:12', seed=0)

class Two(Algorithm):
    "Passes over both, with whatever terms."
    n_epoch: int = 1
    def passes(self, epoch): return (('retain', 'forget'),)

class Misspelt(Two):
    def terms(self, epoch): return Term('retain'), Term('froget', weight=-1.)

class Unsaid(Two):
    def terms(self, epoch): return Term('retain'), Term('forget', 'preference')

class Elsewhere(Two):
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

@pytest.mark.parametrize('how, says', [(Misspelt(), 'froget'), (Unsaid(), 'preference'), (Elsewhere(), 'frget'), (Idle(), 'a pass over forget in epoch 3 and no term'), (Mixed(), "the role 'mixed'"), (Passless(), 'no pass in epoch 1')])
def test_a_class_of_ones_own(how, says, learn, split):
    with pytest.raises(InputError, match=says): learn.unlearn(split, how, quiet=True)

class Beside(Two):
    "A loss that pairs batches, whose one term is on the first of them."
    def terms(self, epoch): return Term('retain', 'apart'),
    def measure(self, t, logits, xb, y, at):
        (*other, _), = [b for role, (_, b) in self.learn.dls.train.now.items() if role == 'forget']
        return self.own_loss(logits, y) - .01*self.model(*other).square().mean()

class Sparse(Two):
    "A joint pass in which only few samples have a term, none of them in some batches."
    def passes(self, epoch): return (('mixed',),)
    def terms(self, epoch): return Term('forget', weight=-1.),

class Own(Two):
    "An objective that goes by no terms."
    def terms(self, epoch): return ()
    def objective(self, pred, *yb): return self.own_loss(pred, *yb)

class Passes(SCRUB):
    def passes(self, epoch): return ('forget',), ('retain',)

@pytest.mark.parametrize('how', [Beside(), Sparse(bs=2, lr=1e-5), Own(), Passes(n_epoch=4)])
def test_what_is_no_slip(how, learn, split):
    assert learn.unlearn(split, how, quiet=True).unlearning.steps

@pytest.mark.parametrize('name', ['seed', 'until', 'retain_before'])
def test_names_that_a_fit_uses_itself(name):
    with pytest.raises(InputError, match=f"called '{name}'"): type('Taken', (Two,), {'__annotations__': {name: float}, name: 1.})

class Cancelled(Callback):
    def before_train(self): raise CancelEpochException

@pytest.mark.parametrize('how', [FineTune(n_epoch=1), EUk(n_epoch=1)])
def test_epochs_that_are_left_out(how, learn, split):
    assert learn.unlearn(split, how, cbs=Cancelled(), quiet=True).unlearning.steps == 0

class Pair(nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x), 0

def twin(learn, model):
    one = copy.copy(learn)
    one.model = model
    return one

def test_models(learn, split):
    frozen = twin(learn, copy.deepcopy(learn.model).requires_grad_(False))
    for how in (SCRUB(n_epoch=1), FineTune(n_epoch=1), SSD()):
        with pytest.raises(InputError, match='All parameters of the model are frozen'): frozen.unlearn(split, how, quiet=True)
    with pytest.raises(InputError, match='gives a tuple'): twin(learn, Pair(learn.model)).unlearn(split, SCRUB(n_epoch=1), quiet=True)
    few = twin(learn, nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    with pytest.raises(InputError, match='0 to 9 and the model has 5 logits'): few.unlearn(split, SCRUB(n_epoch=1), quiet=True)
    with pytest.raises(InputError, match='not a ForgetSplit'): learn.unlearn([1, 2], SCRUB(n_epoch=1), quiet=True)

def test_settings(learn, split):
    risk = Ranking.from_scores(split, np.arange(12.))
    began = []
    class Watch(Callback):
        def before_fit(self): began.append(1)
    with pytest.raises(InputError, match='until='):
        learn.unlearn(risk, SeqUnlearn(SSD(), 2, until=.1), cbs=Watch(), quiet=True)
    assert not began
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
                       (lambda: EUk().budget(split), 'How long EUk trains')]:
        with pytest.raises(InputError, match=words): bad()
    with pytest.raises(InputError, match='One retained sample'): learn.unlearn(ForgetSplit(learn.dls, range(1, 200)), Retrain(), quiet=True)

def test_settings_may_be_numpys(learn, split):
    how = CFk(k=np.int64(1), n_epoch=np.int64(1), lr=np.float32(1e-3), wd=np.float32(1e-4))
    assert Algorithm.from_json(how.to_json()).k == 1
    assert learn.unlearn(split, how, quiet=True, until=np.float32(0)).unlearning.steps == 1
    assert SeqUnlearn(SCRUB(), np.int64(2)) == SeqUnlearn(SCRUB(), 2)
    assert SeqUnlearn(SCRUB(), repair=EUk()).repair == EUk() # as long as the recipe says, which is known when there is a learner

def test_the_loaders_that_were_given_draw_on_as_before(learn, split):
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

@pytest.mark.parametrize('data, says', [(Rows([f'class {i}' for i in y.tolist()]), 'class of each sample, a whole number'),
                                        (Rows(nn.functional.one_hot(y).float()), 'one class a sample'),
                                        (Rows(y.float()), 'one class a sample'), (Words(y), 'must be tensors')])
def test_data(data, says):
    with pytest.raises(InputError, match=says): ForgetSplit(DataLoaders(TorchLoader(data, 16), TorchLoader(rows, 16)), [1, 2]).y

def test_data_without_a_length():
    with pytest.raises(InputError, match='no length'): ForgetSplit(DataLoaders(TorchLoader(Stream(), 16), TorchLoader(rows, 16)), [1, 2])

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
def test_which_samples_a_loader_draws(loader, at):
    assert indices(loader).tolist() == list(at)
    split = ForgetSplit(DataLoaders(loader, TorchLoader(rows, 16)), [at[0]])
    assert sorted([*split.retain, at[0]]) == list(at)

def test_a_sampler_that_does_not_say():
    with pytest.raises(InputError, match='Some does not say'): indices(TorchLoader(rows, 16, sampler=Some(range(30))))

def test_labels_are_those_of_the_loaders():
    dls = digits(n=100)
    x, y = dls.train_ds.tensors
    first = with_train(dls, IndexLoader(TensorDataset(x, y), bs=16))
    targets(first)
    assert (targets(with_train(first, IndexLoader(TensorDataset(x, (y+1) % 10), bs=16))) == ((y+1) % 10).numpy()).all()

def test_a_part_of_the_network_is_not_trained_beside_others(learn, split):
    head = copy.copy(learn)
    head.splitter = lambda m: [list(m[-1].parameters())]
    assert alone(learn, split, NegGradPlus(n_epoch=1)) == '' and 'part of the network' in alone(head, split, NegGradPlus(n_epoch=1))

def test_layers_that_share_their_weights_are_not_laid_side_by_side(learn, split):
    tied = twin(learn, nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10)))
    assert alone(tied, split, NegGradPlus(n_epoch=1)) == ''
    tied.model[3].weight = tied.model[1].weight
    assert 'side by side' in alone(tied, split, NegGradPlus(n_epoch=1))

class Noisy(Rows):
    "As fastai's `Datasets`: chance is added where it is the training set's turn."
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

def test_rankers_look_at_samples_as_they_are():
    dls = DataLoaders(DataLoader(Noisy(y), bs=16), DataLoader(rows, bs=16), device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss())
    for ranker in (Confidence(), GradNorm(), Curvature()): assert (ranker.score(learn, np.arange(9)) == ranker.score(learn, np.arange(9))).all(), ranker

class Kept(Callback):
    "What an algorithm has made of samples before its first step."
    def __init__(self): self.seen = []
    def before_train(self): self.seen.append([t.clone() for t in self.learn.dls.train.made])

def test_algorithms_look_at_samples_as_they_are():
    # in all but the steps themselves: importance, curvature and adversaries do not hang on what chance adds in training
    torch.manual_seed(4) # a network that knows nothing reads all samples as one class for some seeds, which is taken for divergence
    pixels = Noisy(y)
    pixels.x = pixels.x.sigmoid()
    dls = DataLoaders(DataLoader(pixels, bs=16), DataLoader(rows, bs=16), device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss())
    split = ForgetSplit(dls, range(5))
    for how in (SSD(alpha=.5), LFSSD(alpha=.5), Influence()): # which draw nothing by the seed
        one, two = (weights_hash(learn.unlearn(split, how, seed=k, quiet=True).model) for k in range(2))
        assert one == two != weights_hash(learn.model), how
    kept = Kept()
    for k in range(2): learn.unlearn(split, AMUN(n_epoch=1, lr=1e-4), seed=k, cbs=kept, quiet=True) # which refuses what is not in [0, 1], as noise is not
    assert all(map(torch.equal, *kept.seen)) and (kept.seen[0][1] != y[:5]).any()

class Watch(Callback):
    def __init__(self, seen): self.seen = seen
    def before_batch(self):
        if self.training: self.seen.append(self.yb[0].cpu())

def test_a_repeated_training_draws_by_weight(learn):
    from fastai.callback.data import WeightedDL
    n,drawn = len(learn.dls.train_ds),[]
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
            make(how, dls, np.arange(n//2), 0, cbs=Watch(drawn))
            y = torch.cat(drawn)
            assert n//2-32 <= len(y) <= n//2 and not (y == 5).any()
        assert why_not_stacked(recipe, dls) # never side by side, where each is drawn once
        assert fingerprint(dls) != fingerprint(learn.dls)

def tensors(file): return read_shard(file)[0]

def test_streams(learn, tmp_path):
    bare = Learner(learn.dls, learn.model, learn.loss_func)
    bank = ReferenceBank.fit(learn, 2, tmp_path/'bank', quiet=True)
    short = ReferenceBank([{k: v for k, v in o.items() if k != 'phi_valid'} for o in map(tensors, bank.shards)], bank.y)
    for one, kw, says in [(learn, dict(oracles=1), 'oracles=1'), (bare, dict(oracles=2), 'not known how the model was trained'), (learn, dict(bank=short), 'validation')]:
        with pytest.raises(InputError, match=says): one.unlearn_stream([[1, 2]], NegGradPlus(n_epoch=1), tmp_path/'ledger', quiet=True, **kw)
    assert not (tmp_path/'ledger').exists()

def test_drift_is_told_by_the_validation_samples_that_are_drawn(tmp_path):
    learn = Recipe(small_cnn, n_epoch=6, lr=5e-3).fit(digits(n=200), quiet=True)
    bank = ReferenceBank.fit(learn, 4, tmp_path, quiet=True)
    at, f = np.arange(0, len(learn.dls.valid_ds), 2), np.arange(40)
    x, y = (t[at] for t in learn.dls.valid_ds.tensors)
    drawn, own = copy.copy(learn), copy.copy(learn)
    drawn.dls, own.dls = copy.copy(learn.dls), loaders(learn.dls.train_ds, Samples(x, y, learn.dls.train_ds.vocab), learn.dls.loaders[2].dataset)
    drawn.dls.loaders = [learn.dls.loaders[0], subset(learn.dls.valid, at), learn.dls.loaders[2]]
    cut = ReferenceBank([dict(o, phi_valid=o['phi_valid'][at]) for o in map(tensors, bank.shards)], bank.y)
    assert drift(drawn, .5, f, bank) == drift(own, .5, f, cut)

class Net(nn.Sequential):
    def __init__(self, c_in): super().__init__(nn.Conv2d(c_in, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

@pytest.mark.parametrize('loader', [TorchLoader, DataLoader], ids=["PyTorch's", "fastai's"])
def test_loaders_that_name_no_device(loader, tmp_path):
    dls = DataLoaders(*(loader(rows, 16) for _ in range(3)))
    learn = Recipe(Net, n_epoch=1).fit(dls, quiet=True)
    split = ForgetSplit(dls, [1, 2])
    (_, one), = unlearn_many(learn, [(split, NegGradPlus(n_epoch=1), 0)], quiet=True)
    two = learn.unlearn(split, NegGradPlus(n_epoch=1), quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters()))
    bank = ReferenceBank.fit(learn, 2, tmp_path, quiet=True)
    assert np.isfinite(PrivacyRisk(bank).score(learn, [1, 2])).all() and len(evaluate(one, oracles=2, quiet=True))
