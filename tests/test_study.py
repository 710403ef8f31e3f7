"A study states what it runs and evaluates only a part of the samples between stages; its objects are shown as HTML."
import xml.etree.ElementTree as ET

import numpy as np, pytest
from rsu.all import *
from rsu.algorithms import unlearn as unlearning
from rsu.core import recipe

@pytest.fixture(scope='module')
def made():
    learn = Recipe(small_cnn, n_epoch=2, lr=5e-3).fit(digits(n=300), quiet=True)
    return learn, Confidence().rank(learn, ForgetSplit(learn.dls, 'random:24'))

how = NegGradPlus(n_epoch=1, lr=.01, bs=32)

def test_a_study_prints_its_runs_unless_quiet(made, capsys):
    learn, risk = made
    oracles = fit_oracles(learn, risk, 2, quiet=True)
    compare_orders(learn, risk, ('descending',), how, [0], 2, oracles)
    assert capsys.readouterr().out == ('Study: 3 runs (1 algorithm x 3 orders x 1 seed) and 2 retrained models\n'
                                       'Models to unlearn: 3\n')
    new = learn.unlearn(risk, SeqUnlearn(how, 2), quiet=True)
    evaluate(new, oracles, controls=['one-shot'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['Evaluation: 1 unlearned model, 1 control run, 2 retrained models', 'Controls to unlearn: 1']
    compare_orders(learn, risk, ('descending',), how, [0], 2, oracles, quiet=True)
    evaluate(new, oracles, controls=['one-shot'], quiet=True)
    assert capsys.readouterr().out == ''

def test_minutes_are_estimated_from_the_first_item_and_again_later(monkeypatch, capsys):
    now = [0.]
    monkeypatch.setattr(recipe, 'perf_counter', lambda: now[0])
    for i in progress(range(24), 'Runs', equal=True): now[0] += 15 if i < 12 else 25
    assert capsys.readouterr().out.splitlines() == [
        'Runs: 24', 'Runs: the first took 15 s; the other 23 take about 6 minutes, or less on several cores',
        'Runs: 5 of 24 done, about 5 minutes left', 'Runs: 9 of 24 done, about 4 minutes left',
        'Runs: 13 of 24 done, about 3 minutes left', 'Runs: 16 of 24 done, about 2 minutes left',
        'Runs: 19 of 24 done, about 2 minutes left', 'Runs: 22 of 24 done, about 39 s left']
    for i in progress(range(600), 'Runs', equal=True): now[0] += 60
    assert len(capsys.readouterr().out.splitlines()) == 11, 'a line for each tenth'
    for i in progress(range(8), 'Runs', equal=True, at_once=4): now[0] += 60*(i % 4 == 0)
    assert 'Runs: the first 4 took 60 s; the other 4 take about 60 s' in capsys.readouterr().out

def test_between_stages_only_a_part_is_evaluated(made, monkeypatch):
    learn, risk = made
    monkeypatch.setattr(unlearning, 'n_between_stages', 50)
    new = learn.unlearn(risk, SeqUnlearn(how, 3), quiet=True)
    sizes = [[len(o[k]) for k in o.sets] for o in new.unlearning.outputs]
    whole = [24, len(risk.retain), *(len(indices(o)) for o in (risk.valid, risk.test))]
    assert sizes == [whole, *[[24, *(min(50, n) for n in whole[1:])]]*2, whole] and max(whole[1:]) > 50
    assert new.unlearning.before.items() >= Outputs(learn.model, risk).accuracies().items()
    last = new.unlearning.stages[['forget', 'retain', 'test']].iloc[-1].to_dict()
    assert last == pytest.approx({k: Outputs(new.model, risk)[k].accuracy for k in last})

def test_each_model_is_evaluated_once(made, monkeypatch):
    learn, risk = made
    new = learn.unlearn(risk, SeqUnlearn(how, 2), quiet=True)
    def never(*args): raise AssertionError('the outputs were computed again')
    outputs = [unlearning.outputs_of(o, risk) for o in (learn, new)]
    monkeypatch.setattr(unlearning, 'Outputs', never)
    assert [unlearning.outputs_of(o, risk) for o in (learn, new)] == outputs

def test_an_interrupted_sequence_resumes_with_the_partial_outputs(made, monkeypatch, tmp_path):
    learn, risk = made
    monkeypatch.setattr(unlearning, 'n_between_stages', 50)
    whole = learn.unlearn(risk, SeqUnlearn(how, 3), quiet=True)
    calls, forget = [], unlearning._forget_stage
    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return forget(*args)
    monkeypatch.setattr(unlearning, '_forget_stage', interrupted)
    with pytest.raises(KeyboardInterrupt): learn.unlearn(risk, SeqUnlearn(how, 3), quiet=True, path=tmp_path)
    again = learn.unlearn(risk, SeqUnlearn(how, 3), quiet=True, path=tmp_path)
    for a, b in zip(whole.unlearning.outputs, again.unlearning.outputs, strict=True):
        assert all(np.array_equal(a[k].correct, b[k].correct) for k in a.sets)

def test_objects_have_a_picture_and_a_next_step(made, tmp_path):
    learn, risk = made
    bank = ReferenceBank.fit(learn, 2, tmp_path/'bank', quiet=True)
    new = learn.unlearn(risk, SeqUnlearn(how, 2), quiet=True)
    for o in (ForgetSplit(learn.dls, risk.forget), risk, bank, SeqUnlearn(how, 2), new.unlearning):
        page = ET.fromstring(o._repr_html_()) # well formed
        assert page.find('.//{http://www.w3.org/2000/svg}svg') is not None, o
        assert 'Next:' in ''.join(page.itertext()) and ''.join(page.find('code').itertext()) == repr(o)
    odd = Ranking.from_scores(risk, risk.scores, '<script>alert(1)</script>')
    assert '<script' not in odd._repr_html_()
