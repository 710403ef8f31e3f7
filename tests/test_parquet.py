"Image data in the Hugging Face layout: what is read, and what is refused."
import io, json, os
from pathlib import Path

import numpy as np, pyarrow as pa, pyarrow.parquet as pq, pytest, torch
from PIL import Image
from rsu.core.config import InputError
from rsu.core.datasets import parquet_images

cifar = Path(os.environ.get('RSU_DATA', 'data'))/'cifar10-jpeg'
names = ['cat', 'dog']

def encoded(pixels, kind='PNG', **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()

def content(pixels, **options): return dict(bytes=encoded(pixels, **options), path=None)

def table(images, labels, names=None, image='image', label='label'):
    feature = {label: dict(_type='ClassLabel', names=names)}
    info = dict(huggingface=json.dumps(dict(info=dict(features=feature))))
    picture = pa.binary() if isinstance(images[0], bytes) else pa.struct(dict(bytes=pa.binary(), path=pa.string()))
    columns = {image: pa.array(images, picture), label: pa.array(labels, pa.int64())}
    return pa.table(columns).replace_schema_metadata(info if names else None)

def pictures(n, seed=0, size=(4, 6)):
    "`n` random grey pictures: no two are alike"
    return list(np.random.default_rng(seed).integers(0, 256, (n, *size)).astype(np.uint8))

def pixels(dl): return [(o*255).round().byte().numpy() for o in dl.dataset.tensors[0].cpu()]

def store(folder, **size):
    "Two training files, a test file and a validation file: 40, 10 and 8 pictures, whose two classes alternate"
    images = pictures(58, **size)
    parts = {'train-00000-of-00002': (0, 30), 'train-00001-of-00002': (30, 40), 'test': (40, 50),
             'validation': (50, 58)}
    for name, (a, b) in parts.items():
        rows = table([content(o) for o in images[a:b]], [i % 2 for i in range(a, b)], names)
        pq.write_table(rows, folder/f'{name}.parquet')
    return folder

@pytest.fixture
def folder(tmp_path): return store(tmp_path)

def change(folder, row=1, file='train-00000-of-00002', **columns):
    "Put other values into one row"
    path = folder/f'{file}.parquet'
    have = pq.read_table(path)
    rows = have.to_pylist()
    rows[row].update(columns)
    schema = have.schema
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)

def test_every_picture_is_read_with_its_label(folder):
    dls = parquet_images(folder, device='cpu')
    images = pictures(58)
    for dl, (a, b) in zip(dls.loaders, [(0, 40), (50, 58), (40, 50)]):
        assert [o[0].tolist() for o in pixels(dl)] == [o.tolist() for o in images[a:b]]
        assert dl.dataset.tensors[1].tolist() == [i % 2 for i in range(a, b)]
        assert dl.dataset.tensors[0].shape == (b-a, 1, 4, 6)
    assert dls.train_ds.vocab == names

def test_a_part_is_drawn_from_all_files_by_class(folder):
    dls = parquet_images(folder, n=20, seed=3, device='cpu')
    images = {o.tobytes(): i for i, o in enumerate(pictures(58))}
    rows = [images[o.tobytes()] for o in pixels(dls.train)]
    assert [len(dl.dataset) for dl in dls.loaders] == [20, 4, 10]
    assert rows == sorted(set(rows)) and min(rows) < 30 <= max(rows) < 40
    assert dls.train_ds.tensors[1].tolist() == [i % 2 for i in rows] and sum(i % 2 for i in rows) == 10
    again, other = (parquet_images(folder, n=20, seed=s, device='cpu') for s in (3, 4))
    assert torch.equal(again.train_ds.tensors[0], dls.train_ds.tensors[0])
    assert not torch.equal(other.train_ds.tensors[0], dls.train_ds.tensors[0])

def test_missing_splits_are_cut_from_the_training_set(folder):
    (folder/'validation.parquet').unlink()
    one = parquet_images(folder, device='cpu')
    assert [len(dl.dataset) for dl in one.loaders] == [36, 4, 10]
    (folder/'test.parquet').unlink()
    two, other = (parquet_images(folder, seed=s, device='cpu') for s in (0, 1))
    assert [len(dl.dataset) for dl in two.loaders] == [29, 3, 8]
    everything = sorted(o.tobytes() for dl in two.loaders for o in pixels(dl))
    assert everything == sorted(o.tobytes() for o in pictures(58)[:40])
    tests = [dl.loaders[2].dataset.tensors[0] for dl in (two, other)]
    assert torch.equal(*tests) # the test set does not depend on the seed, the validation set does
    assert not torch.equal(two.valid_ds.tensors[0], other.valid_ds.tensors[0])

def test_files_may_lie_in_a_subfolder_beside_other_files(folder):
    (folder/'data').mkdir()
    for file in folder.glob('*.parquet'): file.rename(folder/'data'/file.name)
    (folder/'data'/'extra.parquet').write_text('not read', encoding='utf-8')
    assert len(parquet_images(folder, device='cpu').train_ds) == 40

def test_columns_can_be_named_and_images_may_be_bytes_or_paths(tmp_path):
    images = pictures(12)
    (tmp_path/'picture.png').write_bytes(encoded(images[0]))
    structs = [dict(bytes=None, path=str(tmp_path/'picture.png')), *(content(o) for o in images[1:])]
    pq.write_table(table(structs, [0, 1]*6, names, 'img', 'fine_label'), tmp_path/'train.parquet')
    pq.write_table(table([encoded(o) for o in images], [0, 1]*6, names, 'img', 'fine_label'), tmp_path/'test.parquet')
    pq.write_table(table(structs, [0, 1]*6, None, 'img', 'fine_label'), tmp_path/'validation.parquet')
    dls = parquet_images(str(tmp_path), image='img', label='fine_label', device='cpu')
    for dl in dls.loaders: assert [o[0].tolist() for o in pixels(dl)] == [o.tolist() for o in images]
    assert dls.train_ds.vocab == names

def test_mixed_image_formats_are_converted_to_colour(tmp_path):
    colour = [np.full((8, 8, 3), 40*i, dtype=np.uint8) for i in range(4)]
    several = [content(colour[0]), content(Image.fromarray(colour[1]).quantize()),
               content(Image.fromarray(colour[2]).convert('RGBA')), content(colour[3], kind='JPEG', quality=95)]
    for split in ('train', 'test', 'val'): pq.write_table(table(several, [0, 1, 0, 1]), tmp_path/f'{split}.parquet')
    dls = parquet_images(tmp_path, device='cpu')
    x = dls.train_ds.tensors[0]
    assert x.shape == (4, 3, 8, 8) and dls.train_ds.vocab == [0, 1]
    for i, o in enumerate(x): assert abs(o*255 - 40*i).max() <= 2

def test_the_exif_orientation_is_applied(folder):
    turned, upright = Image.fromarray(pictures(1, seed=9, size=(6, 4))[0]), Image.Exif()
    upright[0x0112] = 6 # to be turned by a quarter, clockwise
    change(folder, image=content(turned, exif=upright))
    got = pixels(parquet_images(folder, device='cpu').train)[1][0]
    assert got.tolist() == np.rot90(np.asarray(turned), -1).tolist()

class ArrowBacked:
    "What `parquet_images` uses of a `datasets.Dataset`"
    def __init__(self, table): self.table = table
    def with_format(self, kind): return self if kind == 'arrow' else None
    def __len__(self): return len(self.table)
    def __getitem__(self, at): return self.table[at.start or 0:at.stop]

def test_loaded_data_sets_are_accepted(folder):
    parts = {f.stem.split('-')[0]: pq.read_table(f) for f in sorted(folder.iterdir(), reverse=True)}
    dls = parquet_images({k: ArrowBacked(o) for k, o in parts.items()}, device='cpu')
    assert [len(dl.dataset) for dl in dls.loaders] == [30, 8, 10] and dls.train_ds.vocab == names
    alone = parquet_images(ArrowBacked(parts['train']), device='cpu')
    assert sum(len(dl.dataset) for dl in alone.loaders) == 30
    with pytest.raises(InputError, match="no split 'train' among test"):
        parquet_images({'test': ArrowBacked(parts['test'])})
    for other in (iter([]), {}, {'train': iter([])}):
        with pytest.raises(InputError, match='a folder of Parquet files, or a datasets.Dataset .* without streaming'):
            parquet_images(other)

def test_data_sets_of_the_package_datasets_are_accepted(folder):
    datasets = pytest.importorskip('datasets', reason='the package datasets is not installed')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    images = [Image.fromarray(o) for o in pictures(40)]
    ds = datasets.Dataset.from_dict(dict(image=images, label=[0, 1]*20), features=features)
    dls = parquet_images(datasets.DatasetDict(train=ds.select(range(39, 9, -1)), test=ds.select(range(10))),
                         device='cpu')
    assert [len(dl.dataset) for dl in dls.loaders] == [27, 3, 10] and dls.train_ds.vocab == names
    assert [o[0].tolist() for o in pixels(dls.loaders[2])] == [o.tolist() for o in pictures(40)[:10]]
    with pytest.raises(InputError, match='without streaming'): parquet_images(ds.to_iterable_dataset())

png = encoded(pictures(1, size=(64, 64))[0])
damaged = [
    (dict(image=dict(bytes=b'no picture', path=None)), 'row 1: the picture cannot be decoded'),
    (dict(image=dict(bytes=png[:len(png)//2], path=None)), 'row 1: the picture cannot be decoded'),
    (dict(image=dict(bytes=None, path=None)), 'row 1: the picture cannot be decoded'),
    (dict(image=None), 'row 1: the picture cannot be decoded'),
    (dict(image=dict(bytes=None, path='nowhere.png')), 'row 1: the picture cannot be decoded .*remove that row'),
    (dict(image=content(np.zeros((4, 6), dtype=np.uint16))), '8 bits per channel'),
    (dict(image=content(pictures(1, size=(6, 4))[0])), 'row 1: the picture is 4 x 6 in grey, .* 6 x 4 in grey'),
    (dict(image=content(np.zeros((4, 6, 3), dtype=np.uint8))), 'row 1: the picture is 6 x 4 in colour, .* in grey'),
    (dict(label=None), 'row 1, has no label'),
    (dict(label=-1), 'row 1, has no label .1 of 30 rows'),
    (dict(label=2), 'row 1, has the label 2, but there are 2 names of classes')]

@pytest.mark.parametrize('columns, words', damaged)
def test_a_bad_row_is_refused_with_its_file_and_number(folder, columns, words):
    change(folder, **columns)
    with pytest.raises(InputError, match=words) as refusal: parquet_images(folder, device='cpu')
    assert 'train-00000-of-00002.parquet' in str(refusal.value) and '\n' not in str(refusal.value)

def test_bad_rows_of_later_files_are_refused(folder):
    change(folder, row=3, file='train-00001-of-00002', image=dict(bytes=b'', path=None))
    with pytest.raises(InputError, match='^train-00001-of-00002.parquet, row 3: '): parquet_images(folder, device='cpu')
    assert len(parquet_images(folder, n=2, device='cpu').train_ds) == 2 # a picture that is not used is not decoded
    change(folder, row=0, file='test', image=content(np.zeros((5, 5), dtype=np.uint8)))
    with pytest.raises(InputError, match='^test.parquet, row 0: the picture is 5 x 5'):
        parquet_images(folder, n=2, device='cpu')

def test_unsuitable_folders_and_columns_are_refused(folder, tmp_path):
    empty = tmp_path/'empty'
    for there in (empty, folder/'test.parquet'):
        with pytest.raises(InputError, match='There is no train.*no file.*give the folder that holds it'):
            parquet_images(there)
    empty.mkdir()
    (empty/'images.zip').write_bytes(b'')
    with pytest.raises(InputError, match='images.zip'): parquet_images(empty)
    with pytest.raises(InputError, match="no column 'pic': it has image, label. .* with image= and label="):
        parquet_images(folder, image='pic')
    with pytest.raises(InputError, match="column 'image' of train-00000.* is struct.*whole numbers from 0"):
        parquet_images(folder, label='image')
    with pytest.raises(InputError, match='give a number from 2 .one per class. to 40'): parquet_images(folder, n=41)
    (folder/'train-00001-of-00002.parquet').write_text('version https://git-lfs.github.com/spec/v1', encoding='utf-8')
    with pytest.raises(InputError, match='train-00001-of-00002.parquet. cannot be read as Parquet'):
        parquet_images(folder)

def test_differing_class_names_and_too_small_classes_are_refused(folder):
    have = pq.read_table(folder/'test.parquet')
    swapped = table(have['image'].to_pylist(), have['label'].to_pylist(), names[::-1])
    pq.write_table(swapped, folder/'test.parquet')
    with pytest.raises(InputError, match='test.parquet and train-00000.* name their classes differently'):
        parquet_images(folder)
    pq.write_table(have, folder/'test.parquet')
    for file in ('validation', 'train-00001-of-00002'): (folder/f'{file}.parquet').unlink()
    rows = pq.read_table(folder/'train-00000-of-00002.parquet').slice(0, 5)
    pq.write_table(rows, folder/'train-00000-of-00002.parquet')
    with pytest.raises(InputError, match='each of the 2 classes .*give more samples of each class'):
        parquet_images(folder)
    pq.write_table(rows.slice(0, 0), folder/'train-00000-of-00002.parquet')
    with pytest.raises(InputError, match='holds no rows: give at least one picture'): parquet_images(folder)

@pytest.mark.skipif(not cifar.is_dir(), reason=f"no '{cifar}': name the folder that holds cifar10-jpeg in RSU_DATA")
def test_cifar_as_jpeg():
    dls = parquet_images(cifar, n=1000, device='cpu')
    assert [len(dl.dataset) for dl in dls.loaders] == [1000, 111, 10000]
    assert dls.train_ds.tensors[0].shape == (1000, 3, 32, 32)
    assert torch.bincount(dls.train_ds.tensors[1]).tolist() == [100]*10

def test_the_command_line_reads_a_folder(here, no_report):
    "A run on `parquet:FOLDER` works as on a data set of the package, and can be read again without trust=True"
    from rsu.app.report import load_run
    (here/'pictures').mkdir()
    store(here/'pictures', size=(8, 8))
    how = ('--n 20 --forget random:4 --ranker confidence --algorithm finetune --groups 1 --oracles 2 --train-epochs 1 '
           '--n-epoch 1 --lr .01').split()
    assert no_report('--data', 'parquet:pictures', *how, '--out', 'out') == 0
    found = load_run('out')
    assert found.settings.data == 'parquet:pictures' and len(found.ranking.dls.train_ds) == 20
    assert no_report('--data', 'parquet:nowhere', *how, '--out', 'other') == 2 and not (here/'other').exists()
