"Data sets on disk and users' loaders: fastai's from files and tables, PyTorch's with and without workers."
import os
from functools import cache
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from fastai.vision.all import ImageBlock, ImageDataLoaders, PILImageBW, resnet18, vision_learner
from torch.utils.data import DataLoader, Dataset, TensorDataset
from common import half_bright_picture, save_half_bright_pictures, timeless
from rsu.core.config import InputError
from rsu.core.datasets import digits, fashion_mnist
from rsu.core.outputs import predict_train
from rsu.core.split import ForgetSplit
from rsu.evaluation.evaluate import evaluate
from rsu.ranking.rankers import Confidence
from rsu.core.recipe import Recipe, small_cnn
from rsu.sequence.sequence import SeqUnlearn
from rsu.algorithms.ascent import NegGradPlus
from rsu.algorithms.teacher import SCRUB
from rsu.algorithms.unlearn import unlearn

# fastai makes tensors of pandas 3's read-only arrays, and does not write to them.
pytestmark = pytest.mark.filterwarnings('ignore:The given NumPy array is not writable')

data = Path(os.environ.get('RSU_DATA', 'data'))
fashion = pytest.mark.skipif(not (data/'FashionMNIST'/'raw').is_dir(),
                             reason=f"no Fashion-MNIST in '{data}': set RSU_DATA to the folder that has it")

def rows(ds): return {o.tobytes() for o in ds.tensors[0].cpu().numpy()}

@fashion
def test_fashion_mnist():
    dls = fashion_mnist(device='cpu')
    x, y = zip(*(dl.dataset.tensors for dl in dls.loaders))
    assert [tuple(o.shape) for o in x] == [(54000,1,28,28), (6000,1,28,28), (10000,1,28,28)]
    assert [tuple(o.bincount().tolist()) for o in y] == [(5400,)*10, (600,)*10, (1000,)*10]
    x = dls.train_ds.tensors[0]
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1
    assert list(dls.train.vocab)[:2] == ['T-shirt/top', 'Trouser'] and dls.c == 10

@fashion
def test_a_part_of_fashion_mnist():
    dls, other = (fashion_mnist(n=1000, seed=s, device='cpu') for s in (0, 1))
    assert dls.train_ds.tensors[1].bincount().tolist() == [100]*10
    assert len(dls.loaders[2].dataset) == 10000
    train, valid, test = (rows(dl.dataset) for dl in dls.loaders)
    # the data set contains a few pictures twice, a part of this size none
    assert len(train) == 1000 and not train & valid and not train & test and not valid & test
    assert train != rows(other.train_ds) and rows(fashion_mnist(n=1000, device='cpu').train_ds) == train


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "train/left/0.png and so on: 48 pictures to train on, 24 to validate."
    path, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
    for part, n in (('train', 24), ('valid', 12)): save_half_bright_pictures(path/part, n, rng)
    return path

class Pictures(Dataset):
    "A PyTorch data set without tensors"
    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        self.y = np.arange(n) % 2
        self.x = np.stack([half_bright_picture('left' if o == 0 else 'right', rng) for o in self.y])
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return torch.from_numpy(self.x[i][None]).float()/255, int(self.y[i])

def from_folder(folder): return ImageDataLoaders.from_folder(folder, img_cls=PILImageBW, bs=16, num_workers=0)
def from_block(folder):
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=GrandparentSplitter())
    return block.dataloaders(folder, bs=16, num_workers=0)
def torch_loaders(make, **kwargs):
    return DataLoaders(*(DataLoader(make(n, seed), batch_size=16, shuffle=seed == 0, **kwargs)
                         for seed, n in enumerate((48, 24, 24))))
def from_torch(folder): return torch_loaders(Pictures)
def from_workers(folder): return torch_loaders(Pictures, num_workers=2)
def tensors(n, seed):
    x, y = zip(*Pictures(n, seed))
    return TensorDataset(torch.stack(x), torch.tensor(y))
def from_tensors(folder): return torch_loaders(tensors)
def in_colour(folder): return ImageDataLoaders.from_folder(folder, bs=16, num_workers=0)

# Small steps, on models whose batch normalisation has converged: else a few passes change its statistics and with them
# the accuracy on the retain set, for which the package warns. These tests are about data, not about accuracy.
scrub, neggrad = SCRUB(lr=1e-5), NegGradPlus(lr=1e-4)
n_epoch = 12 # until the statistics of batch normalisation have converged

def trained(dls, recipe):
    "A split of the data, and a learner trained on it by a recipe or a function"
    split = ForgetSplit(dls, [0, 5, 11, 30], seed=0)
    if isinstance(recipe, Recipe): return split, recipe.fit(split.dls, quiet=True)
    learn = recipe(split.dls)
    learn.recipe = recipe
    return split, learn

def unlearn_and_evaluate(split, learn, how, path):
    "Rank, unlearn and evaluate: results are in range, indices are those of the data set, the old model is unchanged"
    before = [p.detach().clone() for p in learn.model.parameters()]
    ranking = Confidence().rank(learn, split)
    new = unlearn(learn, ranking, how, n_epoch=2, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(before, new.model.parameters()))
    table = evaluate(new, 2, path, quiet=True)
    accuracies = table[['forget', 'retain', 'test', 'tow', 'auc']].to_numpy(dtype=float)
    assert np.isfinite(accuracies).all() and (accuracies >= 0).all() and (accuracies <= 1).all()
    assert sorted([*split.forget, *split.retain]) == list(range(split.N))
    # labels by index agree with labels by loader
    logits, y = predict_train(learn.model, split.dls)
    assert (y.numpy() == split.y).all() and len(logits) == split.N
    again = evaluate(new, 2, path, quiet=True) # reads the oracles from the folder
    pd.testing.assert_frame_equal(timeless(table), timeless(again))
    return table

cnn = Recipe(small_cnn, n_epoch=n_epoch, bs=16)
def by_hand(dls):
    "A train function: any fastai code that returns a trained Learner"
    learn = Learner(dls, small_cnn(1, 2), loss_func=CrossEntropyLossFlat(), lr=3e-3, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch)
    return learn
def by_vision_learner(dls):
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch)
    return learn

@pytest.fixture(scope='module')
def results(folder, tmp_path_factory):
    "A function that returns, for a kind of loaders and a recipe, the split, the learner and a folder for oracles"
    @cache
    def get(make, recipe): return *trained(make(folder), recipe), tmp_path_factory.mktemp('oracles')
    return get

@pytest.mark.parametrize('make', [from_folder, from_block, from_torch, from_tensors])
@pytest.mark.parametrize('recipe', [cnn, by_hand], ids=['Recipe', 'function'])
@pytest.mark.parametrize('how', [scrub, neggrad], ids=['SCRUB', 'NegGradPlus'])
def test_users_loaders_work(make, how, recipe, results):
    split, learn, path = results(make, recipe)
    unlearn_and_evaluate(split, learn, how, path)

def test_loaders_with_workers_work(results):
    split, learn, path = results(from_workers, cnn)
    unlearn_and_evaluate(split, learn, scrub, path)

def test_a_sequence_on_files_works(results):
    split, learn, path = results(from_folder, cnn)
    table = unlearn_and_evaluate(split, learn, SeqUnlearn(scrub.replace(bs=16), groups=2), path)
    assert table.steps['one-shot'] == table.steps['unlearned']

def test_a_vision_learner_works(results):
    split, learn, path = results(in_colour, by_vision_learner)
    unlearn_and_evaluate(split, learn, scrub, path)

def test_a_split_does_not_change_the_users_loaders(folder):
    dls = from_folder(folder)
    before = [b[-1].tolist() for b in dls.valid]
    split = ForgetSplit(dls, [0, 5])
    assert len(dls.loaders) == 2 and dls.train.bs == 16 and [b[-1].tolist() for b in dls.valid] == before
    assert len(split.dls.loaders) == 3
    both = [o for part in (split.valid, split.test) for b in part for o in b[-1].tolist()]
    assert sorted(both) == sorted(o for b in before for o in b)

@pytest.fixture(scope='module')
def people():
    "A table in which each person has four rows."
    rng = np.random.default_rng(0)
    age, job = rng.normal(size=96), rng.choice(['baker', 'smith'], 96)
    won = np.where(age + (job == 'smith') + .1*rng.normal(size=96) > .5, 'yes', 'no')
    return pd.DataFrame(dict(person=np.repeat(np.arange(24), 4), age=age, job=job, won=won))

def table_of(df):
    return TabularDataLoaders.from_df(df, procs=[Categorify, FillMissing, Normalize], cat_names=['job'],
                                      cont_names=['age'], y_names='won', valid_idx=list(range(64, 96)), bs=16)
def by_tabular_learner(dls):
    learn = tabular_learner(dls, layers=[16], metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch)
    return learn

def test_a_tabular_learner_works(people, tmp_path):
    split, learn = trained(table_of(people), by_tabular_learner)
    for how in (scrub, neggrad): unlearn_and_evaluate(split, learn, how, tmp_path)

def test_a_person_is_requested_by_an_array_of_ids(people):
    dls = table_of(people)
    split = ForgetSplit(dls, [3, 10], by=people.person[:64].to_numpy())
    assert list(split.forget) == [12, 13, 14, 15, 40, 41, 42, 43]
    assert (people.person.iloc[split.retain].isin([3, 10]) == False).all()

def test_ids_are_read_from_an_array_or_a_column(people):
    # one that fastai keeps in its own table, and one that it only copies
    split = ForgetSplit(table_of(people), ['no'], by=np.asarray(people.won[:64]))
    assert list(split.forget) == list(np.flatnonzero(people.won[:64] == 'no'))
    named = ForgetSplit(table_of(people.assign(id=people.person)), [3], by='person')
    assert list(named.forget) == [12, 13, 14, 15]

def test_predictions_by_index_use_the_file_at_that_index(folder, results):
    dls = from_folder(folder)
    _, learn, _ = results(from_folder, cnn)
    some = np.array([40, 3, 17])
    _, y = predict_train(learn.model, dls, some)
    assert [dls.vocab[o] for o in y.tolist()] == [dls.train_ds.items[i].parent.name for i in some]

def test_digits_are_disjoint():
    train, valid, test = (rows(dl.dataset) for dl in digits().loaders)
    assert len(train) == 1295 and not train & valid and not train & test and not valid & test

def test_an_exported_learner_has_no_training_data(folder):
    exported = from_folder(folder).new_empty() # as `learn.export` does
    with pytest.raises(InputError, match='training set is empty. .*load_learner.*make the DataLoaders again'):
        ForgetSplit(exported, ['0.png'])
