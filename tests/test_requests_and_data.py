"""Requests and data are accepted in every common form.
Whatever is ambiguous or unsuitable is refused in one sentence."""
import datetime, time
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate
from fastai.data.core import DataLoaders, TfmdDL
from rsu.all import *
from rsu.core.data import is_resident
from rsu.core.indexing import fingerprint, targets
from rsu.core.outputs import predict_train
from rsu.core.split import class_names
from rsu.app.settings import Settings
from rsu.app.pipeline import _answered_requests, _groups_from_file
from rsu.sequence.sequence import Groups

def blobs(n=120, classes=(0, 1, 2), d=6):
    "Points around a centre for each class."
    centre = np.random.default_rng(99).normal(size=(10, d))*3
    y = np.resize(classes, n)
    return torch.tensor(centre[y] + np.random.default_rng(0).normal(size=(n, d)), dtype=torch.float32), torch.tensor(y)

x, y = blobs()
parts = ((0, 80), (80, 100), (100, 120))
def three(make=TensorDataset, x=x, y=y, **kwargs):
    "PyTorch's loaders over three parts of the points."
    return DataLoaders(*(DataLoader(make(x[a:b], y[a:b]), 16, **kwargs) for a, b in parts))
def samples(frame=None, **kwargs):
    return loaders(*(Samples(x[a:b], y[a:b], frame=frame if a == 0 else None, **kwargs) for a, b in parts),
                   device='cpu')
def saved(tmp_path, text, name='ids.csv'):
    (tmp_path/name).write_text(text, encoding='utf-8')
    return tmp_path/name

class Plain(Dataset):
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i], int(self.y[i])

# --- ids in files

people = pd.DataFrame(dict(person=np.arange(80)//2 + 40, name=[f'{i:03}' for i in range(80)],
                           day=pd.to_datetime('2026-01-01') + pd.to_timedelta(np.arange(80), 'D')))

@pytest.mark.parametrize('text, by, want', [
    ('id,person,date\n17,51,2026-01-02\n', 'person', [22, 23]), ('person,id\n51,17\n', 'person', [22, 23]),
    ('id\n51\n', 'person', [22, 23]),
    ('\ufeffperson\n51\n', 'person', [22, 23]), ('who\n51\n', 'person', [22, 23]), # one column, whatever its name
    ('name,note\n007,"a, b"\n', 'name', [7]), ('day\n2026-01-03\n', 'day', [2]),
    ('id\n3\n4\n', None, [3, 4]), ('id,note\n3,"a\nb"\n\n4,c\n', None, [3, 4])])
def test_ids_are_read_from_the_named_column(text, by, want, tmp_path):
    assert ForgetSplit(samples(people), saved(tmp_path, text), by).forget.tolist() == want

@pytest.mark.parametrize('text, by, words', [
    ('id,age\n3,40,\n4,41,\n', None, 'Line 2 .* 3 fields and the header 2'),
    ('id,note\n3,a\n4,b, c\n', None, 'Line 3 .* 3 fields and the header 2'),
    ('id,id\n3,4\n', None, "two columns 'id'"), ('a,b\n1,2\n', 'person', "no column 'id'"),
    ('007\n008\n', 'name', "no column 'id'"),
    ('id\nAda\n', 'person', "belongs to 'Ada'"), ('day\n3/4/2026\n', 'day', "belongs to '3/4/2026'"),
    ('id\n,\n', None, 'Line 2'), ('id,b\n,2\n', 'person', 'without an id')])
def test_an_ambiguous_csv_file_is_refused(text, by, words, tmp_path):
    with pytest.raises(InputError, match=words): ForgetSplit(samples(people), saved(tmp_path, text), by)

@pytest.mark.parametrize('text, words', [('id,group\n3,a,\n4,b,\n', 'Line 2'),
                                        ('id,group,group\n3,a,b\n4,a,b\n', "two columns 'group'"),
                                        ('id,group\n3,a\n4,\n', 'without an id or a group'),
                                        ('id,group\n3,a\n5,b\n', 'not those of the samples')])
def test_groups_are_read_from_a_file(text, words, tmp_path):
    split = ForgetSplit(samples(), [3, 4])
    assert _groups_from_file(saved(tmp_path, 'id,group\n4,b\n3,a\n'), split).labels == ('a', 'b')
    with pytest.raises(InputError, match=words): _groups_from_file(saved(tmp_path, text), split)

# --- the ids of samples

@pytest.mark.parametrize('ids, one', [
    (['a', None], 'z'), ([1., np.nan], 9.), (pd.array([1, None], dtype='Int64'), 9),
    ([datetime.date(2026, 1, 1), None], datetime.date(2026, 2, 3)),
    (pd.to_datetime(['2026-01-01', None]), np.datetime64('2026-02-03')),
    (pd.Categorical(['a', None], ['a', 'z']), 'z'), (pd.array([True, None], dtype='boolean'), False),
    ([Path('a'), None], Path('z'))], ids=lambda o: str(getattr(o, 'dtype', ''))[:9])
def test_rows_without_an_id_belong_to_nobody(ids, one, tmp_path):
    dtype = getattr(ids, 'dtype', None) if not isinstance(ids, list) else pd.Series(ids).dtype
    who = pd.concat([pd.Series(ids)]*20 + [pd.Series([one]*40).astype(dtype)], ignore_index=True)
    for by, dls in (('who', samples(pd.DataFrame(dict(who=who)))), (who, samples())):
        assert ForgetSplit(dls, [one], by).forget.tolist() == list(range(40, 80))
        with pytest.raises(InputError, match='1 of the requested ids is missing'): ForgetSplit(dls, [None], by)
    ledger = Ledger(tmp_path, by='who')
    dls = samples(pd.DataFrame(dict(who=who)))
    ledger.add(dls, np.arange(40, 80))
    assert ledger.forgotten(dls).nonzero()[0].tolist() == list(range(40, 80))

def test_ids_in_every_form_name_the_same_samples(tmp_path):
    frame = pd.DataFrame(dict(age=np.arange(80.), person=[f'p{i//4}' for i in range(80)]))
    dls = samples(frame)
    for forget in (['p3', 'p4'], {'p3', 'p4'}, ('p3', 'p4'), np.array(['p3', 'p4']),
                   pd.Series(['p4', 'p3'], index=[7, 9]), (f'p{i}' for i in (3, 4)), dict(p3=1, p4=2)):
        assert ForgetSplit(dls, forget, 'person').forget.tolist() == list(range(12, 20))
    with pytest.raises(InputError, match="no column 'persn' .*did you mean 'person'"):
        ForgetSplit(samples(frame), ['p3'], 'persn')
    with pytest.raises(InputError, match="no column 'person' .*no table.*attribute frame"):
        ForgetSplit(three(Plain), ['p3'], 'person')
    by_file = Settings(forget=str(saved(tmp_path, 'id\np3\n')))
    with pytest.raises(InputError, match="attribute frame"):
        _answered_requests(by_file, three(Plain), 'person', Ledger(tmp_path/'ledger', 'person'))
    for one in (3, np.int64(3), torch.tensor(3)):
        with pytest.raises(InputError, match='forget='): ForgetSplit(dls, one, 'age')
    with pytest.raises(InputError, match="2 columns 'a'"):
        ForgetSplit(samples(pd.DataFrame(np.zeros((80, 2)), columns=['a', 'a'])), [0], 'a')
    part = Subset(dls.train_ds, range(40, 80)) # as random_split gives it
    of_part = DataLoaders(DataLoader(part, 16), dls.valid, dls.loaders[2])
    assert ForgetSplit(of_part, ['p11'], 'person').forget.tolist() == [4, 5, 6, 7]

def test_ids_of_many_rows_are_found_in_seconds():
    ids = np.repeat(np.arange(20000), 10)
    dls = loaders(Samples(torch.zeros(200000, 1), torch.arange(200000) % 2),
                  *[Samples(torch.zeros(10, 1), torch.arange(10) % 2)]*2, device='cpu')
    start = time.process_time()
    assert len(ForgetSplit(dls, np.arange(10000), ids)) == 100000
    assert time.process_time() - start < 8 # .5 s; it took 40 s when each requested id made a set of all ids

def test_samples_can_be_named_by_their_file(tmp_path):
    class Files(Plain): items = [Path(f'folder-{i % 2}/{i//2}.png') for i in range(80)]
    class Unique(Plain): samples = [(f'{i}.png', 0) for i in range(80)]
    assert ForgetSplit(three(Files), [Path('folder-0/1.png'), 'folder-1/1.png']).forget.tolist() == [2, 3]
    assert ForgetSplit(three(Unique), saved(tmp_path, 'id\n7.png\n5.png\n')).forget.tolist() == [5, 7]
    with pytest.raises(InputError, match="2 files '1.png': give more of the path, for example 'folder-0.1.png'"):
        ForgetSplit(three(Files), ['1.png'])
    with pytest.raises(InputError, match="no file 'left.1.png': .* lists it, for example 'folder-0.1.png'"):
        ForgetSplit(three(Files), [Path('left/1.png')])
    with pytest.raises(InputError, match="no file '99.png': .* for example 'folder-0.0.png'"):
        ForgetSplit(three(Files), ['99.png'])
    with pytest.raises(InputError, match="'Ada' is not one: .* by="): ForgetSplit(three(), ['Ada'])

def test_files_may_be_given_by_other_paths_than_the_data_set_lists(tmp_path, monkeypatch):
    class Files(Plain): items = [Path(f'pictures/folder-{i % 2}/{i//2}.png') for i in range(80)]
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path/'pictures/folder-1/3.png', './pictures/folder-0/../folder-1/3.png', 'folder-1/3.png'):
        assert ForgetSplit(three(Files), [path]).forget.tolist() == [7]
    with pytest.raises(InputError, match="no file"): ForgetSplit(three(Files), [tmp_path/'folder-1/3.png'])
    with pytest.raises(InputError, match="The file 'pictures.folder-1.3.png' is named twice"):
        ForgetSplit(three(Files), ['folder-1/3.png', tmp_path/'pictures/folder-1/3.png'])

def test_a_request_in_words_that_is_not_understood_lists_the_forms():
    with pytest.raises(InputError, match="'1.png' is not understood: .*a list of files.*.csv of positions or files"):
        ForgetSplit(three(), '1.png')

# --- positions and masks

ones = (y[:80] == 1).numpy()
@pytest.mark.parametrize('forget', [
    torch.nonzero(y[:80] == 1), torch.nonzero(y[:80] == 1, as_tuple=True), np.where(ones), np.argwhere(ones),
    ones[:, None], ones[None], ones.tolist(), torch.tensor(ones),
    {*map(int, np.flatnonzero(ones))}, frozenset(np.flatnonzero(ones)), (int(i) for i in np.flatnonzero(ones)),
    pd.Series(ones), pd.Index(np.flatnonzero(ones)), list(torch.tensor(np.flatnonzero(ones))), range(1, 80, 3)],
    ids=('nonzero tuple where argwhere column row list tensor '
         'set frozenset generator Series Index tensors range').split())
def test_positions_and_masks_in_every_form_name_the_same_samples(forget):
    assert ForgetSplit(three(), forget).forget.tolist() == np.flatnonzero(ones).tolist()

@pytest.mark.parametrize('forget, words', [
    (np.eye(3, dtype=bool)[y[:80]], r'\(80, 3\).*mask\[:,3\]'), (np.argwhere(np.ones((2, 3))), r'\(6, 2\)'),
    (np.where(np.ones((2, 3))), r'\(2, 6\)'), (np.array([[3, 4]]), r'\(1, 2\)'),
    (torch.tensor(3), 'a position or a class'),
    (3, 'a position or a class'), ([[1, 2], [3]], 'whole numbers'), ([1.5], 'whole numbers'),
    (np.ones(79, dtype=bool), '79 entries for 80')], ids=str)
def test_ambiguous_positions_are_refused(forget, words):
    with pytest.raises(InputError, match=words): ForgetSplit(three(), forget)

# --- classes and groups

def test_classes_are_named_by_vocab_or_label():
    gaps = three(**dict(zip('xy', blobs(classes=(0, 2, 4, 6, 8)))))
    split = ForgetSplit(gaps, 'class:4')
    assert set(split.y[split.forget]) == {4} and class_names(split.dls) == {i: str(i) for i in (0, 2, 4, 6, 8)}
    assert set(ByClass().divide(ForgetSplit(gaps, range(20)))) == set('02468')
    with pytest.raises(InputError, match="no class '3'"): ForgetSplit(gaps, 'class:3')
    numbers = samples(vocab=[3, 7, 1])
    for name, label in (('3', 0), ('7', 1), ('1', 2)):
        assert set(y[ForgetSplit(numbers, f'class:{name}').forget].tolist()) == {label}
    for name in '024':
        with pytest.raises(InputError, match=f"no class '{name}': the classes are 3, 7, 1"):
            ForgetSplit(numbers, f'class:{name}')
    words = samples(vocab=['cat', 'dog', 'owl'])
    assert ForgetSplit(words, 'class:2').forget.tolist() == ForgetSplit(words, 'class:owl').forget.tolist()

def test_two_classes_with_one_name_are_refused():
    twins = samples(vocab=['crane', 'dog', 'crane'])
    for act in (lambda: ByClass().divide(ForgetSplit(twins, range(30))), lambda: ForgetSplit(twins, 'class:crane')):
        with pytest.raises(InputError, match="Two classes have the name 'crane', the labels 0 and 2"): act()

class Halved(Groups):
    "Groups that leave something out."
    how: str = 'lost'
    def divide(self, split):
        a, b = split.forget[::2], split.forget[1::2]
        return dict(lost=dict(a=a), twice=dict(a=a, b=split.forget), empty=dict(a=split.forget, b=a[:0]),
                    whole=dict(a=a, b=b))[self.how]

@pytest.mark.parametrize('how', ['lost', 'twice', 'empty'])
def test_groups_that_are_not_a_partition_are_refused(how):
    split = ForgetSplit(samples(), range(10))
    assert len(Halved('whole').divide(split)) == 2
    with pytest.raises(InputError, match="Halved.* does not divide the 10 samples"): Halved(how).divide(split)

# --- data are read through the data set's own methods

class Centred(TensorDataset):
    def __getitem__(self, i):
        a, b = super().__getitem__(i)
        return a - a.mean(), b
class CentredSamples(Samples):
    def __getitem__(self, i):
        a, b = super().__getitem__(i)
        return a - a.mean(), b

def test_a_data_set_is_read_through_its_own_getitem(tmp_path):
    own = [three(Centred), loaders(*(CentredSamples(x[a:b], y[a:b]) for a, b in parts), bs=16, device='cpu')]
    want = DataLoaders(*(DataLoader(TensorDataset(torch.stack([o for o, _ in Centred(x[a:b], y[a:b])]), y[a:b]), 16)
                         for a, b in parts))
    recipe = Recipe(mlp, n_epoch=2, bs=16)
    trained = recipe.fit(ForgetSplit(want, [0]).dls, quiet=True)
    bank = ReferenceBank.fit(trained, 2, tmp_path/'want', quiet=True)
    for i, dls in enumerate(own):
        split = ForgetSplit(dls, [0])
        assert not is_resident(split.dls.train_ds)
        same = recipe.fit(split.dls, quiet=True)
        for a, b in zip(predict_train(trained.model, split.dls), predict_train(trained.model, want)):
            torch.testing.assert_close(a, b)
        for a, b in zip(same.model.parameters(), trained.model.parameters()): torch.testing.assert_close(a, b)
        again = ReferenceBank.fit(same, 2, tmp_path/str(i), quiet=True)
        torch.testing.assert_close(again.phi, bank.phi, atol=.02, rtol=.02)
    with pytest.raises(InputError, match='Centred .* redefines __getitem__'): IndexLoader(Centred(x, y))

def test_tensors_are_used_only_where_items_equal_them(monkeypatch):
    assert is_resident(TensorDataset(x, y)) and is_resident(Samples(x, y)) and not is_resident(Plain(x, y))
    monkeypatch.setattr(TensorDataset, '__getitem__', lambda self, i: (self.tensors[0][i]*2, self.tensors[1][i]))
    assert not is_resident(TensorDataset(x, y))

class Unreadable(Plain):
    def __getitem__(self, i): return None if i == 3 else super().__getitem__(i)
class Marked(Plain):
    def __getitem__(self, i): return super().__getitem__(i) if i != 3 else (self.x[i], -1)
def drop_unusable(b): return default_collate([o for o in b if o is not None and o[1] >= 0])

@pytest.mark.parametrize('make', [Unreadable, Marked])
@pytest.mark.parametrize('part', range(3))
@pytest.mark.parametrize('workers', [0, 2])
def test_a_sample_that_collate_fn_drops_is_refused(make, part, workers):
    dls = DataLoaders(*(DataLoader((make if i == part else Plain)(x[a:b], y[a:b]), 16,
                                   collate_fn=drop_unusable, num_workers=workers) for i, (a, b) in enumerate(parts)))
    with pytest.raises(InputError, match='^The sample at position 3 is not in its batch'): ForgetSplit(dls, 'class:1')

def test_a_sample_that_collate_fn_drops_in_training_is_refused():
    from rsu.core.indexing import batches
    with pytest.raises(InputError, match='position 3'):
        list(batches(DataLoader(Unreadable(x, y), 16, collate_fn=drop_unusable), [np.array([1, 3]), np.array([2])]))

def test_validation_and_test_sets_are_read_completely_and_in_order():
    recipe, plain = Recipe(mlp, n_epoch=1), three(Plain)
    learn = recipe.fit(ForgetSplit(plain, [1]).dls, quiet=True)
    rough = [three(Plain, shuffle=True, drop_last=True),
             DataLoaders(*(TfmdDL(Plain(x[a:b], y[a:b]), bs=16, shuffle=True, drop_last=True, num_workers=0)
                           for a, b in parts))]
    for dls in rough:
        split = ForgetSplit(dls, [1])
        for mine, theirs, own in ((split.valid, 1, dls.loaders[1]), (split.test, 2, dls.loaders[2])):
            want = predict(learn.model, plain.loaders[theirs])
            assert len(want[1]) == 20
            for dl in (mine, own):
                for _ in range(2):
                    for a, b in zip(predict(learn.model, dl), want): torch.testing.assert_close(a, b)
            assert torch.cat([b[1] for b in mine]).tolist() == y[100 if theirs == 2 else 80:][:20].tolist()

class Noisy(Plain):
    def __getitem__(self, i):
        a, b = super().__getitem__(i)
        return a + torch.randn(6)*.01, b
class OwnNoise(Plain):
    rng = np.random.default_rng()
    def __getitem__(self, i):
        a, b = super().__getitem__(i)
        return a + torch.tensor(self.rng.normal(size=6)*.01, dtype=torch.float32), b

@pytest.mark.parametrize('make', [Noisy, OwnNoise])
def test_augmentation_does_not_change_a_key(make, tmp_path):
    with pytest.warns(UserWarning, match='training and validation and test data are different each time'):
        splits = [ForgetSplit(three(make), [1]) for _ in range(3)]
    assert len({o.key for o in splits}) == 1 == len({o.eval_key for o in splits})
    assert fingerprint(three(make)) != fingerprint(three(make, y=2-y))
    before = torch.get_rng_state()
    assert fingerprint(three(make)) == fingerprint(three(make)) and torch.equal(torch.get_rng_state(), before)
    Ledger(tmp_path).add(three(make), [1])
    assert Ledger(tmp_path).forgotten(three(make)).nonzero()[0].tolist() == [1]

def test_random_batch_transforms_warn_and_keep_the_key(recwarn):
    def dls(transform):
        return DataLoaders(*(TfmdDL(Plain(x[a:b], y[a:b]), bs=16, num_workers=0, after_batch=[transform])
                             for a, b in parts))
    def noise(t): return t + torch.randn_like(t)*.01 if t.is_floating_point() else t
    with pytest.warns(UserWarning, match='are different each time'):
        splits = [ForgetSplit(dls(noise), [1]) for _ in range(2)]
    assert splits[0].key == splits[1].key
    recwarn.clear()
    ForgetSplit(dls(lambda t: t), [1])
    assert not recwarn.list

def test_a_split_of_other_data_is_refused():
    learn = Recipe(mlp, n_epoch=1).fit(three(), quiet=True)
    with pytest.raises(InputError, match='of 80 labels of the split differ'):
        learn.unlearn(ForgetSplit(three(y=y.roll(1)), [1]), FineTune(n_epoch=1), quiet=True)
    assert learn.unlearn(ForgetSplit(three(Plain), [1]), FineTune(n_epoch=1), quiet=True).unlearning.steps

# --- duplicates

def test_equal_rows_have_similarity_1():
    z = torch.rand(80, 9, generator=torch.Generator().manual_seed(0))
    z[[3, 50, 51]], z[[4, 60]], z[70] = .5, z[5].clone(), .25
    dls = loaders(Samples(z, y[:80]), Samples(z[:10], y[:10]), Samples(z[:10], y[:10]), device='cpu')
    for features in (None, z.double()):
        twins = ForgetSplit(dls, [3, 4]).near_duplicates(features, at_least=1.)
        pairs = twins[['forget', 'retain', 'similarity']].to_numpy().tolist()
        assert pairs == [[3, 50, 1], [3, 51, 1], [4, 5, 1], [4, 60, 1]]

# --- unsuitable data are refused

def changed(part, what):
    a = x.clone()
    a[parts[part][0] + 3, 2] = what
    return a
@pytest.mark.parametrize('make', [TensorDataset, Plain])
@pytest.mark.parametrize('part, name', [*enumerate(['training', 'validation', 'test'])])
@pytest.mark.parametrize('what', [float('nan'), float('inf')])
def test_nan_in_any_part_is_refused(make, part, name, what):
    with pytest.raises(InputError, match=f'The {name} data hold NaN or infinite values, first at position 3'):
        ForgetSplit(three(make, changed(part, what)), [1])

class Triple(Plain):
    def __getitem__(self, i): return *super().__getitem__(i), i
class Stream(IterableDataset):
    def __iter__(self): return iter(Plain(x, y))
    def __len__(self): return 80
class Float(Plain):
    def __getitem__(self, i): return self.x[i], float(self.y[i])

@pytest.mark.parametrize('dls, words', [
    (lambda: three(Triple), 'more than two items.*index'),
    (lambda: three(lambda a, b: TensorDataset(a, b, torch.arange(len(b)))), 'more than two items.*index'),
    (lambda: three(lambda a, b: Stream()), 'Stream.*no positions'),
    (lambda: three(Float), 'float.*y.long.*regression is not supported'),
    (lambda: three(y=torch.eye(3)[y]), r'shape \(80, 3\).*argmax.*several labels'),
    (lambda: three(y=y*2-1), 'go from -1 to 3: number the classes from 0'),
    (lambda: three(lambda a, b: a), 'A batch must be tensors'),
    (lambda: [[1, 2]], 'has a list where a loader is wanted'),
    (lambda: (TensorDataset(x, y),)*3, 'has a TensorDataset where a loader')])
def test_data_without_one_class_per_sample_are_refused(dls, words):
    with pytest.raises(InputError, match=f'(?s){words}'): ForgetSplit(dls(), [1])

@pytest.mark.parametrize('a, b, words', [
    (x, y+1, 'go from 1 to 3 and vocab= names 3'), (x, y*2-1, 'from -1 to 3'), (x, y.float(), 'y.long'),
    (x, torch.eye(3)[y], 'argmax'), (x, y[:, None].expand(-1, 2), 'several labels'),
    ((x*9).byte(), y, r'uint8.*float\(\)/255'), (x[:, 0], y, 'one row per sample'),
    (x[:9], y, '9 inputs and 120 labels'), ([['a']], [0], 'are not numbers')])
def test_samples_refuse_unsuitable_tensors(a, b, words):
    with pytest.raises(InputError, match=words): Samples(a, b, vocab=list('abc'))

@pytest.mark.parametrize('a, b', [(x.double(), y), (x.numpy(), y.numpy()),
                                  (x.numpy().astype('float64'), y.numpy().astype('uint8')),
                                  (x.half().float(), y.int()), (x.clone().requires_grad_(), y[:, None]),
                                  (x.tolist(), y.tolist())],
                         ids='float64 NumPy uint8 int32 grad lists'.split())
def test_samples_accept_common_dtypes_and_containers(a, b):
    ds = Samples(a, b, vocab=list('abc'))
    assert ds.tensors[0].dtype == torch.float32 and not ds.tensors[0].requires_grad
    assert ds.tensors[1].dtype == torch.int64 and ds.tensors[1].shape == (120,)
    learn = Recipe(mlp, n_epoch=1).fit(loaders(ds, ds, ds, device='cpu'), quiet=True)
    assert learn.unlearn(ForgetSplit(learn.dls, [1]), FineTune(n_epoch=1), quiet=True).unlearning.steps

def test_inputs_that_require_grad_are_accepted(tmp_path):
    for make in (TensorDataset, Plain):
        leaf = x.clone().requires_grad_()
        dls = three(make, leaf)
        learn = Recipe(mlp, n_epoch=1).fit(ForgetSplit(dls, [1]).dls, quiet=True)
        split = ForgetSplit(learn.dls, [1])
        assert learn.unlearn(split, FineTune(n_epoch=1), quiet=True).unlearning.steps
        assert len(split.near_duplicates()) == 0
        assert len(ReferenceBank.fit(learn, 2, tmp_path/make.__name__, quiet=True)) == 2
        if make is TensorDataset: assert leaf.grad is None

@pytest.mark.parametrize('a, network, words', [
    (torch.rand(120, 8, 8), mlp, r"'mlp' does not take samples of the shape \(8, 8\)"),
    (torch.rand(120, 64, 8), mlp, r'\(64, 8\)'), (torch.rand(120, 8, 8), small_cnn, r"'small_cnn' .*\(8, 8\).*C = 1"),
    (torch.rand(120, 6), small_cnn, r'\(6,\)'), (torch.randint(0, 9, (120, 6)), mlp, 'int64')])
def test_samples_of_a_wrong_shape_for_the_network_are_refused(a, network, words):
    with pytest.raises(InputError, match=f'(?s){words}'): Recipe(network, n_epoch=1).fit(samples_of(a), quiet=True)
def samples_of(a): return loaders(*(Samples(a[i:j], y[i:j]) for i, j in parts), device='cpu')

def test_a_class_may_lack_training_samples():
    dls = loaders(*(Samples(x[i:j], y[i:j] % 2, vocab=list('abc')) for i, j in parts), device='cpu')
    learn = Recipe(mlp, n_epoch=2).fit(dls, quiet=True)
    with pytest.raises(InputError, match='empty'): ForgetSplit(dls, 'class:c')
    risk = Confidence().rank(learn, ForgetSplit(dls, range(9)))
    table = evaluate(learn.unlearn(risk, SeqUnlearn(FineTune(bs=8), ByClass()), n_epoch=1, quiet=True), 2, quiet=True)
    assert np.isfinite(table.tow).all()

@pytest.mark.parametrize('make', [Samples, TensorDataset])
def test_a_class_may_occur_in_validation_only(make):
    two_classes = y.clone()
    two_classes[:80] %= 2
    learn = Recipe(mlp, n_epoch=1).fit(three(make, y=two_classes)) # validates after the epoch
    assert learn.model[-1].out_features == 3
    assert learn.unlearn(ForgetSplit(learn.dls, [1]), FineTune(n_epoch=1), quiet=True).unlearning.steps

# --- loaders as PyTorch has them

def test_loaders_may_be_a_tuple_or_a_single_loader(capsys):
    dls = three()
    want = ForgetSplit(dls, [3, 4])
    for given in (tuple(dls.loaders), list(dls.loaders), DataLoaders(*dls.loaders)):
        split = ForgetSplit(given, [3, 4])
        assert (split.key, split.eval_key) == (want.key, want.eval_key)
    two = ForgetSplit(tuple(dls.loaders[:2]), [3, 4])
    alone = [ForgetSplit(dls.train, [3, 4], test=o)
             for o in (dls.loaders[1], dls.valid_ds, Plain(x[80:100], y[80:100]))]
    assert all((len(o.y), sum(len(b[1]) for dl in (o.valid, o.test) for b in dl)) == (80, 20) for o in (two, *alone))
    assert 'no test loader' in capsys.readouterr().out

def test_a_subset_may_be_the_test_set():
    rest = Subset(TensorDataset(x, y), range(100, 120))
    assert torch.cat([b[1] for b in ForgetSplit(three(), [1], test=rest).test]).tolist() == y[100:].tolist()

# --- labels of torchvision

@pytest.fixture
def pictures(tmp_path):
    "A folder of 60 pictures in three classes."
    from PIL import Image
    for i in range(60):
        (tmp_path/'pictures'/str(i % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(tmp_path/'pictures'/str(i % 3)/f'{i:02}.png')
    return tmp_path/'pictures'

def test_labels_listed_by_torchvision_are_read_without_decoding(pictures):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import ToTensor
    read = []
    def counted(img):
        read.append(1)
        return ToTensor()(img)
    ds = ImageFolder(pictures, counted)
    for data, want in ((ds, [0]*20+[1]*20+[2]*20), (Subset(ds, [0, 59, 30]*20), [0, 2, 1]*20),
                       (Subset(Subset(ds, range(40, 60)), range(10)), [2]*10)):
        read.clear()
        assert targets(DataLoaders(DataLoader(data, 16), DataLoader(data, 16))).tolist() == want and len(read) <= 35
    class Relabelled(ImageFolder):
        def __getitem__(self, i): return super().__getitem__(i)[0], 2 - super().__getitem__(i)[1]
    for other in (ImageFolder(pictures, counted, target_transform=lambda o: 2-o), Relabelled(pictures, counted)):
        assert targets(DataLoaders(DataLoader(other, 16), DataLoader(other, 16))).tolist() == [2]*20+[1]*20+[0]*20
    ds.targets = ds.targets[::-1] # a list that disagrees with the data set's items
    assert targets(DataLoaders(DataLoader(ds, 16), DataLoader(ds, 16))).tolist() == [0]*20+[1]*20+[2]*20

def test_files_of_a_subset_are_requested_and_shown_by_their_names(pictures):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import ToTensor
    ds = ImageFolder(pictures, ToTensor())
    train, valid = Subset(ds, range(len(ds)-1, 2, -1)), Subset(ds, range(3))
    split = ForgetSplit(tuple(DataLoader(o, 8) for o in (train, valid, valid)),
                        [ds.samples[-2][0]])
    assert split.forget.tolist() == [1]
    assert Ranking.from_scores(split, [1.]).to_frame().file.tolist() == [ds.samples[-2][0]]
