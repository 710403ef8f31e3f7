"Erosion and reversal where stages are evaluated on fewer samples, and for sequences with a repair or a single stage."
import numpy as np, pandas as pd, pytest, torch
from rsu.algorithms.ascent import NegGradPlus
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import Unlearning, unlearn
from rsu.core.config import InputError
from rsu.core.datasets import digits
from rsu.core.outputs import Outputs, SetOutputs
from rsu.core.split import ForgetSplit
from rsu.evaluation.compare import evaluate_stages, stage_changes
from rsu.ranking.rankers import Random
from rsu.sequence.sequence import SeqUnlearn

rng = np.random.default_rng(0)

def random_outputs(retain=1500):
    "Random outputs on 6 samples to forget, and on 1,500 retained and test samples"
    sets = {k: SetOutputs(rng.random(n) < .8, torch.tensor(rng.normal(size=n)))
            for k, n in dict(forget=6, retain=retain, valid=10, test=1500).items()}
    return Outputs._of(sets)

def test_both_models_of_a_difference_have_the_same_samples():
    full = [random_outputs() for _ in range(3)]
    stored = [full[0], full[1].sampled(1000), full[2]]
    groups = {'1': np.arange(3), '2': np.arange(3, 6)}
    record = Unlearning(None, ForgetSplit(digits(n=100), range(6)), None, 0, {}, pd.DataFrame(dict(group=['1', '2'])),
                        groups, stored)
    df = stage_changes(record).query("group == 'all'").set_index('stage')
    for column, k in dict(erosion='retain', erosion_test='test').items():
        before, between = (o.sampled(1000)[k].correct for o in full[:2])
        assert len(before) == 1000 and before.mean() != full[0][k].accuracy
        assert df[column][1] == pytest.approx(before.mean() - between.mean())
        assert df[column][2] == pytest.approx(full[0][k].accuracy - full[2][k].accuracy)

def test_stages_without_a_group(learn, split):
    "After a repair all groups can have returned; with a single stage none can"
    how = SeqUnlearn(NegGradPlus(n_epoch=2, bs=4), 2, repair=FineTune(n_epoch=1))
    new = unlearn(learn, Random().rank(learn, split), how, quiet=True)
    df = stage_changes(new.unlearning)
    assert df.forgot.unique().tolist() == ['', '1', '2', 'repair'] and set(df.group) == {'all', '1', '2'}
    for k, idx in new.unlearning.groups.items():
        own = {'1': 1, '2': 2}[k]
        part = df[df.group == k].set_index('stage')
        accuracies = new.unlearning.stages[f'group {k}']
        assert part.reversal.isna().tolist() == [i < own for i in range(4)]
        assert part.reversal[3] == pytest.approx(accuracies.iloc[-1] - accuracies.iloc[own-1])
    one = stage_changes(unlearn(learn, split, FineTune(n_epoch=1), quiet=True).unlearning)
    assert one.reversal.tolist()[1:] == [0.] and one.group.tolist() == ['all', 'all']

def test_a_record_without_outputs_is_refused(learn, split):
    new = unlearn(learn, split, FineTune(n_epoch=0), quiet=True)
    new.unlearning.outputs = []
    with pytest.raises(InputError, match='does not hold the outputs'): stage_changes(new.unlearning)
    with pytest.raises(InputError, match='does not hold the outputs'): evaluate_stages(new)
