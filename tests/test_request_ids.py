"Requests by id: unknown ids, a single id in place of a list, and values that are not positions."
import pandas as pd, pytest
from common import people
from rsu.core.split import ForgetSplit
from rsu.erasure.ledger import Ledger
from rsu.erasure.stream import unlearn_stream
from rsu.core.recipe import Recipe, mlp
from rsu.core.config import InputError

names = ['patient-17', 'patient-3', 'Zoë', '0042']

@pytest.mark.parametrize('unknown, near', [
    (' patient-17 ', 'patient-17'), ('Patient-17', 'patient-17'),
    ('PATIENT-017', 'patient-17'), ('patient17', 'patient-17'),
    ('ZOË', 'Zoë'), ('42', '0042'), ('patient-3\t', 'patient-3')])
@pytest.mark.parametrize('as_file', [False, True], ids=['list', 'file'])
def test_an_unknown_id_is_refused_with_the_nearest_ids(unknown, near, as_file, tmp_path):
    request = [unknown]
    if as_file:
        request = tmp_path/'erase.csv'
        pd.DataFrame({'id': [unknown]}).to_csv(request, index=False)
    with pytest.raises(InputError, match=f"belongs to .*: the data have .*'{near}'.*, and ids must match exactly"):
        ForgetSplit(people(names), request, by='who')

@pytest.mark.parametrize('ids, unknown, near', [([7, 70, 8], 700, '70'), ([7.5, 8.], '7.55', '7.5')])
def test_an_unknown_number_is_refused_with_the_nearest_numbers(ids, unknown, near):
    with pytest.raises(InputError, match=f'the data have .*{near}'): ForgetSplit(people(ids), [unknown], by='who')

def test_a_number_is_read_from_text_only_if_it_is_written_in_the_usual_way():
    # the ids '1055' and '01055' may belong to two persons
    for o in ('7', '7.0', 7.0): assert len(ForgetSplit(people([7, 8, 9]), [o], by='who')) == 10
    for o in ('007', ' 7', '7 ', '+7', '-07'):
        with pytest.raises(InputError, match='No training sample belongs to'):
            ForgetSplit(people([7, 8, 9]), [o], by='who')
    with pytest.raises(InputError, match="belongs to '007': the data have 7, and ids must match exactly"):
        ForgetSplit(people([7, 8, 9]), ['007'], by='who')

def test_an_empty_list_of_ids_is_refused():
    with pytest.raises(InputError, match='The list of ids is empty'): ForgetSplit(people(names), [], by='who')

def test_an_id_unlike_any_other_is_refused():
    with pytest.raises(InputError, match="belongs to 'xyz': check the ids"):
        ForgetSplit(people(names), ['xyz'], by='who')

@pytest.mark.parametrize('requests, words', [
    (['patient-17'], "'patient-17', which is not a request.*values of who or the path of a CSV file, "
                     "as .*'patient-17'"),
    ([7], '7, which is not a request: give a list of requests, each a list of values of who'),
    (iter(['patient-17']), "'patient-17', which is not a request"),
    ('patient-17', 'requests= is one request: give a list of them')])
def test_an_id_in_place_of_a_request_is_refused(requests, words, tmp_path):
    learn = Recipe(mlp).learner(people(names))
    ledger = Ledger(tmp_path/'out', by='who')
    with pytest.raises(InputError, match=words): unlearn_stream(learn, requests, ledger=ledger)
    assert not (tmp_path/'out').exists()

def test_a_position_or_a_name_in_place_of_a_list_is_refused(tmp_path):
    learn = Recipe(mlp).learner(people(names))
    words = 'which is not a request: .*each a list of positions or the path of a CSV file'
    for requests in ([3, 14], ['patient-17']):
        with pytest.raises(InputError, match=words):
            unlearn_stream(learn, requests, ledger=Ledger(tmp_path/'out'))
    with pytest.raises(InputError, match="give a list of values of who, .*'patient-17'.* or the path of a .csv"):
        ForgetSplit(learn.dls, 'patient-17', by='who')
    with pytest.raises(InputError, match='There is no file .*none.csv.*or a list of values of who'):
        ForgetSplit(learn.dls, 'none.csv', by='who')

@pytest.mark.parametrize('idx, words', [
    (['patient-3'], "'patient-3', which is not a position: give whole numbers from 0 to 29"),
    ([1, 30], '30, which is not a position'), ([-1], '-1, which is not a position'),
    ([.5], '0.5, which is not a position'),
    (3, r'idx=3 is .* list: give \[3\]')])
def test_a_ledger_refuses_values_that_are_not_positions(idx, words, tmp_path):
    ledger = Ledger(tmp_path/'out', by='who')
    with pytest.raises(InputError, match=words): ledger.add(people(names), idx)
    assert not (tmp_path/'out').exists()

def test_ids_whose_samples_were_forgotten_before_are_refused():
    split = ForgetSplit(people(names), names[:1], by='who')
    with pytest.raises(InputError, match='draws no sample of the requested ids: they were forgotten before'):
        ForgetSplit(split.retain_dls, names[:1], by='who')
    later = ForgetSplit(split.retain_dls, names[:2], by='who')
    assert {*split.dls.train_ds.frame.who.iloc[later.forget]} == {names[1]}
