"Data sets on disk, and loaders of a user's own: fastai's from files and tables, PyTorch's with workers."
import os
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
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset
from common import timeless
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

# fastai makes tensors of pandas 3's arrays, which nobody may write to; it writes to none of them.
pytestmark = pytest.mark.filterwarnings('ignore:The given NumPy array is not writable')

data = Path(os.environ.get('RSU_DATA', 'data'))
fashion = pytest.mark.skipif(not (data/'FashionMNIST'/'raw').is_dir(), reason=f"no Fashion-MNIST in '{data}': name the folder that holds it in RSU_DATA")

def rows(ds): return {o.tobytes() for o in ds.tensors[0].cpu().numpy()}

@fashion
def test_fashion_mnist():
    dls = fashion_mnist(device='cpu')
    assert [tuple(dl.dataset.tensors[0].shape) for dl in dls.loaders] == [(54000,1,28,28), (6000,1,28,28), (10000,1,28,28)]
    assert [tuple(dl.dataset.tensors[1].bincount().tolist()) for dl in dls.loaders] == [(5400,)*10, (600,)*10, (1000,)*10]
    x = dls.train_ds.tensors[0]
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1
    assert list(dls.train.vocab)[:2] == ['T-shirt/top', 'Trouser'] and dls.c == 10

@fashion
def test_a_part_of_fashion_mnist():
    dls, other = (fashion_mnist(n=1000, seed=s, device='cpu') for s in (0, 1))
    assert dls.train_ds.tensors[1].bincount().tolist() == [100]*10
    assert len(dls.loaders[2].dataset) == 10000
    train, valid, test = (rows(dl.dataset) for dl in dls.loaders)
    # the data set itself holds a few pictures twice; a part this small holds none
    assert len(train) == 1000 and not train & valid and not train & test and not valid & test
    assert train != rows(other.train_ds) and rows(fashion_mnist(n=1000, device='cpu').train_ds) == train

# Two classes of pictures, bright at the left or at the right, so that a few steps are enough to tell them apart.
def picture(label, rng):
    x = rng.integers(0, 120, (16, 16))
    x[:, slice(0, 8) if label == 'left' else slice(8, 16)] += 120
    return x.astype(np.uint8)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "train/left/0.png and so on: 48 pictures to train on, 24 to validate."
    path, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
    for part, n in (('train', 24), ('valid', 12)):
        for label in ('left', 'right'):
            (path/part/label).mkdir(parents=True)
            for i in range(n): Image.fromarray(picture(label, rng)).save(path/part/label/f'{i}.png')
    return path

class Pictures(Dataset):
    "A PyTorch data set that is no TensorDataset."
    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        self.y = np.arange(n) % 2
        self.x = np.stack([picture('left' if o == 0 else 'right', rng) for o in self.y])
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return torch.from_numpy(self.x[i][None]).float()/255, int(self.y[i])

def from_folder(folder): return ImageDataLoaders.from_folder(folder, img_cls=PILImageBW, bs=16, num_workers=0)
def from_block(folder):
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter())
    return block.dataloaders(folder, bs=16, num_workers=0)
def from_torch(workers):
    return lambda folder: DataLoaders(*(DataLoader(Pictures(n, i), batch_size=16, shuffle=i==0, num_workers=workers) for i, n in enumerate((48, 24, 24))))
def from_tensors(folder):
    part = lambda n, seed: TensorDataset(*(torch.stack([torch.as_tensor(o[i]) for o in Pictures(n, seed)]) for i in (0, 1)))
    return DataLoaders(*(DataLoader(part(n, i), batch_size=16, shuffle=i==0) for i, n in enumerate((48, 24, 24))))
# more than one channel, and three to begin with
def in_colour(folder): return ImageDataLoaders.from_folder(folder, bs=16, num_workers=0)

# Small steps, on models whose batch normalisation has settled: else a few passes move its means to those of the pictures,
# what is retained is read otherwise, and the guard rightly warns. These tests ask whether data get there.
scrub, neggrad = SCRUB(lr=1e-5), NegGradPlus(lr=1e-4)
settled = 12 # epochs after which the means of batch normalisation are no longer those of its start

def goes_through(dls, recipe, how, path):
    "The whole of it, in Python: split, train, rank, unlearn, evaluate."
    split = ForgetSplit(dls, [0, 5, 11, 30], seed=0)
    learn = recipe.fit(split.dls, quiet=True) if isinstance(recipe, Recipe) else made(recipe, split.dls)
    before = [p.detach().clone() for p in learn.model.parameters()]
    ranking = Confidence().rank(learn, split)
    new = unlearn(learn, ranking, how, n_epoch=2, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(before, new.model.parameters()))
    table = evaluate(new, 2, path, quiet=True)
    accuracies = table[['forget', 'retain', 'test', 'tow', 'auc']].to_numpy(dtype=float)
    assert np.isfinite(accuracies).all() and (accuracies >= 0).all() and (accuracies <= 1).all()
    assert sorted([*split.forget, *split.retain]) == list(range(split.N))
    # positions are those of the user's data set: labels by position agree with labels by loader
    logits, y = predict_train(learn.model, split.dls)
    assert (y.numpy() == split.y).all() and len(logits) == split.N
    again = evaluate(new, 2, path, quiet=True) # from the folder
    pd.testing.assert_frame_equal(timeless(table), timeless(again))
    return table

def made(train, dls):
    learn = train(dls)
    learn.recipe = train
    return learn

cnn = Recipe(small_cnn, n_epoch=settled, bs=16)
def by_hand(dls):
    "A train function: any fastai code that ends in a trained Learner."
    with Learner(dls, small_cnn(1, 2), loss_func=CrossEntropyLossFlat(), lr=3e-3, metrics=accuracy).no_bar() as learn, learn.no_logging(): learn.fit(settled)
    return learn
def by_vision_learner(dls):
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(settled)
    return learn

@pytest.mark.parametrize('recipe', [cnn, by_hand], ids=['Recipe', 'function'])
@pytest.mark.parametrize('how', [scrub, neggrad], ids=['SCRUB', 'NegGradPlus'])
@pytest.mark.parametrize('make', [from_folder, from_block, from_torch(0), from_tensors], ids=['folder', 'DataBlock', 'torch', 'tensors'])
def test_loaders_of_ones_own(make, how, recipe, folder, tmp_path): goes_through(make(folder), recipe, how, tmp_path)

def test_workers(folder, tmp_path): goes_through(from_torch(2)(folder), cnn, scrub, tmp_path)

def test_a_sequence_on_files(folder, tmp_path):
    table = goes_through(from_folder(folder), cnn, SeqUnlearn(scrub.replace(bs=16), groups=2), tmp_path)
    assert table.steps['one-shot'] == table.steps['unlearned']

def test_a_vision_learner(folder, tmp_path): goes_through(in_colour(folder), by_vision_learner, scrub, tmp_path)

def test_loaders_keep_their_own_settings(folder):
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
    return pd.DataFrame(dict(person=np.repeat(np.arange(24), 4), age=age, job=job, won=np.where(age + (job == 'smith') + .1*rng.normal(size=96) > .5, 'yes', 'no')))

def table_of(df): return TabularDataLoaders.from_df(df, procs=[Categorify, FillMissing, Normalize], cat_names=['job'], cont_names=['age'], y_names='won',
                                                    valid_idx=list(range(64, 96)), bs=16)
def by_tabular_learner(dls):
    learn = tabular_learner(dls, layers=[16], metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(settled)
    return learn

@pytest.mark.parametrize('how', [scrub, neggrad], ids=['SCRUB', 'NegGradPlus'])
def test_a_table(how, people, tmp_path): goes_through(table_of(people), by_tabular_learner, how, tmp_path)

def test_a_person_in_a_table(people):
    dls = table_of(people)
    split = ForgetSplit(dls, [3, 10], by=people.person[:64].to_numpy())
    assert list(split.forget) == [12, 13, 14, 15, 40, 41, 42, 43]
    assert (people.person.iloc[split.retain].isin([3, 10]) == False).all()

def test_a_column_of_a_table(people):
    # of the table that fastai made of it; here a column that it keeps
    split = ForgetSplit(table_of(people), ['no'], by=np.asarray(people.won[:64]))
    assert list(split.forget) == list(np.flatnonzero(people.won[:64] == 'no'))
    named = ForgetSplit(table_of(people.assign(id=people.person)), [3], by='person')
    assert list(named.forget) == [12, 13, 14, 15]

def test_one_batch_of_a_sequence_is_a_batch_of_the_files(folder):
    # what the network sees at a position is the file at that position
    dls = from_folder(folder)
    learn = cnn.fit(ForgetSplit(dls, [0]).dls, quiet=True)
    some = np.array([40, 3, 17])
    _, y = predict_train(learn.model, dls, some)
    assert [dls.vocab[o] for o in y.tolist()] == [dls.train_ds.items[i].parent.name for i in some]

def test_digits_are_disjoint():
    train, valid, test = (rows(dl.dataset) for dl in digits().loaders)
    assert len(train) == 1295 and not train & valid and not train & test and not valid & test
