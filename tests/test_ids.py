"Requests by id: what is not the id of anybody, what is one id and not a list, and what is not a position."
import pandas as pd, pytest
from common import people
from rsu.core.split import ForgetSplit
from rsu.erasure.ledger import Ledger
from rsu.erasure.stream import unlearn_stream
from rsu.core.recipe import Recipe, mlp
from rsu.core.config import InputError

names = ['patient-17', 'patient-3', 'Zoë', '0042']

@pytest.mark.parametrize('asked, near', [
    (' patient-17 ', 'patient-17'), ('Patient-17', 'patient-17'), ('PATIENT-017', 'patient-17'), ('patient17', 'patient-17'),
    ('ZOË', 'Zoë'), ('42', '0042'), ('patient-3\t', 'patient-3')])
@pytest.mark.parametrize('as_file', [False, True], ids=['list', 'file'])
def test_the_nearest_ids_are_named_and_not_taken(asked, near, as_file, tmp_path):
    request = [asked]
    if as_file: pd.DataFrame({'id': request}).to_csv(request := tmp_path/'erase.csv', index=False)
    with pytest.raises(InputError, match=f"belongs to .*: the data have .*'{near}'.*, and ids must match exactly"):
        ForgetSplit(people(names), request, by='who')

@pytest.mark.parametrize('ids, asked, near', [([7, 70, 8], 700, '70'), ([7.5, 8.], '7.55', '7.5')])
def test_the_nearest_numbers(ids, asked, near):
    with pytest.raises(InputError, match=f'the data have .*{near}'): ForgetSplit(people(ids), [asked], by='who')

def test_numbers_may_be_written_with_zeros():
    assert len(ForgetSplit(people([7, 8, 9]), ['007'], by='who')) == 10

def test_an_id_like_no_other():
    with pytest.raises(InputError, match="belongs to 'xyz': check the ids"): ForgetSplit(people(names), ['xyz'], by='who')

@pytest.mark.parametrize('requests, says', [
    (['patient-17'], "'patient-17', which is no request.*values of who or the path of a CSV file, as .*'patient-17'"),
    ([7], '7, which is no request: give a list of requests, each a list of values of who'),
    (iter(['patient-17']), "'patient-17', which is no request"),
    ('patient-17', 'requests= is one request: give a list of them')])
def test_requests_that_are_ids(requests, says, tmp_path):
    learn = Recipe(mlp).learner(people(names))
    with pytest.raises(InputError, match=says): unlearn_stream(learn, requests, ledger=Ledger(tmp_path/'out', by='who'))
    assert not (tmp_path/'out').exists()

def test_requests_that_are_positions(tmp_path):
    learn = Recipe(mlp).learner(people(names))
    for requests in ([3, 14], ['patient-17']):
        with pytest.raises(InputError, match='which is no request: .*each a list of positions or the path of a CSV file'):
            unlearn_stream(learn, requests, ledger=Ledger(tmp_path/'out'))
    with pytest.raises(InputError, match="give a list of values of who, .*'patient-17'.* or the path of a .csv"):
        ForgetSplit(learn.dls, 'patient-17', by='who')
    with pytest.raises(InputError, match='There is no file .*none.csv.*or a list of values of who'):
        ForgetSplit(learn.dls, 'none.csv', by='who')

@pytest.mark.parametrize('idx, says', [(['patient-3'], "'patient-3', which is not a position: give whole numbers from 0 to 29"),
                                      ([1, 30], '30, which is not a position'), ([-1], '-1, which is not a position'),
                                      ([.5], '0.5, which is not a position'), (3, r'idx=3 is .* list: give \[3\]')])
def test_an_entry_of_what_is_not_a_position(idx, says, tmp_path):
    ledger = Ledger(tmp_path/'out', by='who')
    with pytest.raises(InputError, match=says): ledger.add(people(names), idx)
    assert not (tmp_path/'out').exists()
