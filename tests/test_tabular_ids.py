"Requests by a column that fastai's tabular transforms have changed, or that holds rounded numbers."
import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import (CategoryBlock, Categorify, FillMissing, Normalize, RegressionBlock, TabularDataLoaders,
                                TabularProc)
from torch.utils.data import Subset
from common import people
from rsu.core.config import InputError
from rsu.core.data import Samples, loaders
from rsu.core.split import ForgetSplit, ids_by_sample
from rsu.erasure.ledger import Ledger

# fastai's transforms use pandas in ways that pandas warns about
pytestmark = [pytest.mark.filterwarnings(f'ignore:{o}')
              for o in ('Constructing a Categorical', 'A value is being set', 'The given NumPy array is not writable')]

class Doubled(TabularProc):
    "A transform of the user"
    def encodes(self, to): to.conts = to.conts*2

def table(person, procs=(Categorify, Normalize), cat_names=('person',), cont_names=('x',), y_names='y', y_block=None):
    "A table of 200 rows and the loaders that fastai makes of it; the training rows are in random order"
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'person': person, 'x': rng.normal(size=200), 'y': np.arange(200) % 2, 'row': np.arange(200)})
    valid_idx = rng.permutation(200)[:50]
    dls = TabularDataLoaders.from_df(df, procs=list(procs), cat_names=list(cat_names), cont_names=list(cont_names),
                                     y_names=y_names, y_block=y_block or CategoryBlock(), valid_idx=valid_idx, bs=32)
    return df, dls

def owners(df, dls, idx): return {*df.person[dls.train_ds.items.row.iloc[idx]]}

@pytest.mark.parametrize('start', [0, 7, 1000, 2**40])
def test_an_encoded_column_selects_the_person_of_the_data(start):
    df, dls = table(start + np.arange(200)//2*3)
    for o in sorted({*df.person[dls.train_ds.items.row]}):
        assert owners(df, dls, ForgetSplit(dls, [o], by='person').forget) == {o}

def test_a_code_is_not_an_id():
    _, dls = table(1000 + np.arange(200)//2)
    with pytest.raises(InputError, match='belongs to 56'): ForgetSplit(dls, [56], by='person')
    with pytest.raises(InputError, match='belongs to 10555: the data have 1055'):
        ForgetSplit(dls, [10555], by='person')

@pytest.mark.parametrize('kind', [str, 'category', 'datetime64[ns]', float])
def test_encoded_ids_of_any_type_and_missing_ones_are_translated(kind, tmp_path):
    person = pd.Series(1000 + np.arange(200)//2).astype(kind)
    person[::7] = None
    df, dls = table(person)
    ids = ids_by_sample(dls, 'person')
    expected = df.person[dls.train_ds.items.row]
    assert [o is None for o in ids] == expected.isna().tolist()
    assert all(a == b for a, b in zip(ids, expected) if a is not None)
    one = expected.dropna().iloc[0]
    pd.DataFrame({'id': [one]}).to_csv(tmp_path/'ids.csv', index=False)
    for request in ([one], tmp_path/'ids.csv'):
        assert owners(df, dls, ForgetSplit(dls, request, by='person').forget) == {one}

def test_the_rows_of_a_subset_are_translated():
    _, dls = table(1000 + np.arange(200)//2)
    whole = ids_by_sample(dls, 'person')
    part = loaders(*3*[Samples(torch.randn(4, 2), torch.arange(4) % 2)])
    part.train.dataset = Subset(dls.train_ds, [5, 0, 9, 3])
    assert ids_by_sample(part, 'person').tolist() == whole[[5, 0, 9, 3]].tolist()

def test_a_ledger_names_persons_of_the_data(tmp_path):
    df, dls = table(1000 + np.arange(200)//2)
    assert Ledger(tmp_path/'out', by='person').ids_of(dls).tolist() == df.person[dls.train_ds.items.row].tolist()

@pytest.mark.parametrize('settings, words', [
    (dict(cat_names=(), cont_names=('person', 'x')), 'Normalize'),
    (dict(cat_names=(), cont_names=('person', 'x'), procs=(Doubled,)), 'Doubled'),
    (dict(cat_names=(), cont_names=('x',), y_names='person'), 'Categorize'),
    (dict(procs=(Doubled, Categorify)), 'Doubled')])
def test_a_column_that_cannot_be_restored_is_refused(settings, words):
    df, dls = table(np.arange(200) % 9, **settings)
    with pytest.raises(InputError, match=f"'person' was changed by .*{words}.* give them as by=, an array"):
        ForgetSplit(dls, [7], by='person')
    given = df.person[dls.train_ds.items.row].to_numpy()
    assert owners(df, dls, ForgetSplit(dls, [given[0]], by=given).forget) == {given[0]}

def test_ids_that_fastai_filled_in_are_refused():
    person = pd.Series(1000. + np.arange(200)//2)
    settings = dict(procs=(FillMissing,), cat_names=(), cont_names=('person', 'x'))
    _, dls = table(person, **settings)
    assert len(ForgetSplit(dls, ids_by_sample(dls, 'person')[:1].tolist(), by='person'))
    person[::3] = np.nan
    _, dls = table(person, **settings)
    with pytest.raises(InputError, match="'person' was changed by FillMissing"): ForgetSplit(dls, [1050], by='person')

def test_a_column_outside_the_model_or_a_numeric_label_is_as_it_was():
    df, dls = table(np.arange(200)//2, procs=(FillMissing, Categorify, Normalize), cat_names=())
    assert ids_by_sample(dls, 'person').tolist() == df.person[dls.train_ds.items.row].tolist()
    df, dls = table(np.arange(200)//2, cat_names=(), y_names='person', y_block=RegressionBlock())
    assert ids_by_sample(dls, 'person').tolist() == df.person[dls.train_ds.items.row].tolist()

@pytest.mark.parametrize('first, words', [(2**24, '16777216 as floats of 32 bits'), (.5, '0.5 as floats of 32 bits')])
def test_floats_that_fastai_rounds_are_refused(first, words):
    _, dls = table(first + np.arange(200.)//2, cat_names=())
    with pytest.raises(InputError, match='person holds numbers such as .* as floats of 32 bits.* text'):
        ForgetSplit(dls, [first+7], by='person')

def test_large_numbers_are_not_rounded_together():
    ids = [2**60+1, 2**60+2, None]*10
    assert ForgetSplit(people([1, 2, 3]), [2**60+1], by=ids).forget.tolist() == [*range(0, 30, 3)]
    with pytest.raises(InputError, match='by= holds numbers such as .* as floats of 64 bits'):
        ForgetSplit(people([1, 2, 3]), [2**60+1], by=np.array(ids, dtype=float))

def test_an_id_that_only_held_out_rows_have_is_refused_with_the_reason():
    df, dls = table(1000 + np.arange(200), cat_names=())
    held_out = df.person[dls.valid_ds.items.row.iloc[0]]
    with pytest.raises(InputError, match=f'{held_out} has rows only in the validation or test data'):
        ForgetSplit(dls, [held_out], by='person')
