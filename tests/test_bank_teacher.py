"`BankTeacher` beyond its page: many runs, the command line, erasure requests, and banks that cannot teach."
import pickle, shutil

import numpy as np, pytest, torch
from common import call, clinic_request, request, results, small
from rsu.algorithms.bank import BankTeacher, best_shrinkage, leave_one_out, predict_without
from rsu.algorithms.base import FineTune
from rsu.algorithms.many import unlearn_many
from rsu.app.settings import from_toml
from rsu.core.config import InputError, Value
from rsu.core.split import ForgetSplit
from rsu.core.store import read_json, read_shard
from rsu.erasure.ledger import Ledger
from rsu.erasure.stream import StillKnown
from rsu.ranking.bank import BankKey, ReferenceBank, halves
from rsu.ranking.rankers import Ranking
from rsu.sequence.sequence import SeqUnlearn

def bank_for(learn, n=4, seed=0):
    "A bank of made-up references for the learner's data"
    N = len(learn.dls.train_ds)
    logits = torch.randn(n, N, 10, generator=torch.manual_seed(seed))
    return ReferenceBank.from_arrays(halves(n, N, seed=0), logits, learn.dls.train_ds.tensors[1])

def test_records_of_many_runs_keep_their_bank(learn, split):
    bank = bank_for(learn)
    (_, new), = unlearn_many(learn, [(split, BankTeacher(bank, n_epoch=1), 0)], quiet=True)
    assert new.unlearning.how.bank is not None and hasattr(new.unlearning.how.bank, 'logits')
    assert new.unlearning.how == BankTeacher(bank, n_epoch=1)

def test_a_pickled_record_of_a_sequence_has_keys_in_the_place_of_banks(learn, split):
    bank, ranking = bank_for(learn), Ranking.from_scores(split, np.arange(12))
    how = SeqUnlearn((BankTeacher(bank, n_epoch=1, bs=32), None), groups=2, repair=FineTune(n_epoch=1))
    new = learn.unlearn(ranking, how, quiet=True)
    again = pickle.loads(pickle.dumps(new.unlearning))
    assert again.how.algorithm[0].bank == bank.as_value and isinstance(again.how.algorithm[0].bank, BankKey)
    assert again.how == new.unlearning.how and again.how.repair == FineTune(n_epoch=1)

class StoresAnswers(BankTeacher):
    "Stores the answers of each stage"
    n_epoch:int=1
    stored = []
    def before_fit(self):
        super().before_fit()
        self.stored.append(self.answers)

@pytest.mark.parametrize('pending', ['held out', 'retain'])
def test_the_answers_leave_out_what_a_stage_does_not_retain(pending, learn, split):
    bank, ranking = bank_for(learn, 8), Ranking.from_scores(split, np.arange(12))
    StoresAnswers.stored.clear()
    groups = SeqUnlearn(StoresAnswers(bank=bank, shrinkage=.1), 2, pending=pending)
    learn.unlearn(ranking, groups, quiet=True)
    first, second = groups.stages(ranking)
    for stage, answers in zip((first, second), StoresAnswers.stored):
        gone = split.forget if pending == 'held out' or stage is second else first.forget
        part = bank.at(stage.forget)
        assert torch.equal(answers, predict_without(part.logits, part.members, bank.members[:,gone], .1))

def test_samples_of_earlier_requests_are_left_out(learn, tmp_path):
    bank = bank_for(learn, 8)
    StoresAnswers.stored.clear()
    with pytest.warns(StillKnown): # the references are made up
        learn.unlearn_stream([[3, 4], [9]], StoresAnswers(bank=bank, shrinkage=.1), tmp_path/'ledger', quiet=True)
    part = bank.at([9])
    expected = predict_without(part.logits, part.members, bank.members[:,[3, 4, 9]], .1)
    assert torch.equal(StoresAnswers.stored[1], expected)

def test_blocks_of_samples_do_not_change_the_prediction(monkeypatch):
    g = torch.manual_seed(0)
    outputs, members = torch.randn(6, 9, 3, generator=g), torch.as_tensor(halves(6, 9, seed=0))
    whole = predict_without(outputs, members, shrinkage=.3), leave_one_out(outputs, members, members, .3)
    monkeypatch.setattr('rsu.algorithms.bank._block', 2)
    parts = predict_without(outputs, members, shrinkage=.3), leave_one_out(outputs, members, members, .3)
    for a, b in zip(whole, parts): torch.testing.assert_close(a, b)
    one = predict_without(outputs[...,0], members, shrinkage=.3) # margins: the shape (K, n)
    torch.testing.assert_close(one, whole[0][:,0])

def test_a_sample_that_no_reference_was_trained_on_gets_the_mean():
    outputs, members = torch.tensor([[1., 2.], [3., 4.]])[:,:,None], torch.zeros(2, 2, dtype=torch.bool)
    assert predict_without(outputs, members).flatten().tolist() == [2, 3]
    assert best_shrinkage(outputs, members, members) == 1

def test_a_bank_that_is_not_one_is_refused_when_it_is_given():
    for bank in ('bank', 3, {'kind': 'x'}):
        with pytest.raises(InputError, match='is not a reference bank: give'): BankTeacher(bank)
    assert BankTeacher(BankKey('3f2a', 4)) == Value.from_json(BankTeacher(BankKey('3f2a', 4)).to_json())

run = ['run', *small, '--algorithm', 'bankteacher,none', '--n-epoch', '2']

def test_a_run_learns_from_the_bank_of_its_ranker(here, no_report):
    assert call(*run, '--out', 'out') == 0
    names = sorted((here/'out'/'bank').glob('reference-*.safetensors'))
    assert len(names) == 4 and all('logits' in read_shard(o)[0] for o in names)
    facts = read_json(here/'out'/'run.json')
    key = ReferenceBank.open(here/'out'/'bank').as_value
    assert facts['references'] == 4 and facts['how']['algorithm'][0]['bank'] == key.to_dict()
    # the file of settings names the bank by its key, and the run fits its own
    assert isinstance(from_toml('out/run.toml')['algorithm'][0].bank, BankKey)
    assert call('run', '--config', 'out/run.toml', '--out', 'again') == 0
    first, second = (results(here/o)[1] for o in ('out', 'again'))
    assert all(torch.equal(v, second[k]) for k, v in first.items())

def test_a_run_whose_ranker_needs_no_bank_fits_one_for_its_algorithm(here, no_report):
    assert call(*run, '--ranker', 'confidence', '--out', 'out') == 0
    assert len(list((here/'out'/'bank').glob('reference-*.safetensors'))) == 4
    assert read_json(here/'out'/'run.json')['references'] == 4

ask = [o if o != 'neggradplus' else 'bankteacher' for o in clinic_request]

@pytest.fixture
def with_logits(in_clinic):
    "The clinic, with a bank that stores logits"
    from clinic_data import learner
    shutil.rmtree('bank')
    ReferenceBank.fit(learner(), n=4, path='bank', logits=True, quiet=True)
    return in_clinic

def test_a_request_learns_from_a_bank_until_the_bank_is_purged(with_logits, no_page, capsys):
    out = ['--groups', '1', '--out', 'out']
    assert call(*ask, *request('patient-3'), *out) == 2
    assert "The algorithm 'bankteacher' needs a reference bank that stores logits" in capsys.readouterr().err
    assert call(*ask, *request('patient-3'), *out, '--bank', 'bank', '--purge') in (0, 3)
    made = Ledger('out', by='person').made()
    assert set(made.kind) == {'weights', 'bank'}
    if (with_logits/'bank').exists(): pytest.fail('the bank was not purged: ' + capsys.readouterr().out)
    assert call(*ask, *request('patient-4'), *out, '--bank', 'bank') == 2
    assert 'BankTeacher needs a reference bank' in capsys.readouterr().err

def test_a_bank_of_margins_is_refused(in_clinic, no_page, capsys):
    assert call(*ask, *request('patient-3'), '--groups', '1', '--bank', 'bank', '--out', 'out') == 2
    assert 'fit it with logits=True' in capsys.readouterr().err and not (in_clinic/'out').exists()

def test_the_ledger_notes_the_bank_of_an_algorithm(with_logits):
    from clinic_data import learner
    bank, learn = ReferenceBank.open('bank'), learner()
    learn.fit(1)
    learn.unlearn_stream([['patient-3']], BankTeacher(bank, n_epoch=1), Ledger('out', by='person'), quiet=True)
    assert Ledger('out', by='person').state_of('bank') == 'noted'
    with pytest.raises(InputError, match='There is no bank in'):
        shutil.rmtree('bank')
        learn.unlearn(ForgetSplit(learn.dls, [5]), BankTeacher(bank), quiet=True)
