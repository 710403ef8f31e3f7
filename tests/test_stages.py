"Groups, stages and steps of sequences, compared with values computed by hand."
import numpy as np, pytest, torch
from rsu.core.data import Samples, loaders
from rsu.core.split import ForgetSplit
from rsu.ranking.rankers import Ranking
from rsu.sequence.sequence import ByClass, NaturalBreaks, Quantiles, SeqUnlearn, Singly, Thresholds, share
from rsu.algorithms.base import FineTune

def ranked(scores, N=40):
    "A ranking of the first samples of `N`, whose classes are 0, 1, 2, 0, 1, 2, ..."
    part = Samples(torch.zeros(N, 2), torch.arange(N) % 3, vocab=range(3))
    return Ranking.from_scores(ForgetSplit(loaders(part, part, part, bs=8, device='cpu'), range(len(scores))), scores)

def listed(groups): return {k: at.tolist() for k, at in groups.items()}

def test_a_score_at_a_threshold_belongs_to_the_group_above():
    risk = ranked([2., 1., 0., 3., 1.])
    assert listed(Thresholds((2, 1)).divide(risk)) == {'1': [0, 3], '2': [1, 4], '3': [2]}

def test_equal_scores_are_grouped_by_position_with_larger_groups_first():
    assert listed(Quantiles(3).divide(ranked([1., 1., 1., 1., 1.]))) == {'1': [0, 1], '2': [2, 3], '3': [4]}
    assert listed(Singly().divide(ranked([1., 2., 1.]))) == {'1': [1], '2': [0], '3': [2]}

def test_natural_breaks_and_classes_start_with_the_highest_scores():
    risk = ranked([0., 9., 5., .1, 9.2, 5.1])
    assert listed(NaturalBreaks(3).divide(risk)) == {'1': [1, 4], '2': [2, 5], '3': [0, 3]}
    assert list(ByClass().divide(risk).items())[0][1].tolist() == [1, 4]

@pytest.mark.parametrize('order,names', [('descending', '12345'), ('ascending', '54321'), ('interleaved', '15243')])
def test_the_order_of_groups(order, names):
    how = SeqUnlearn(FineTune(n_epoch=1, bs=2), 5, order)
    assert ''.join(s.name for s in how.stages(ranked(range(10)))) == names

@pytest.mark.parametrize('pending', ['held out', 'retain'])
def test_the_retain_set_of_each_stage(pending):
    risk = ranked([3., 2., 1.])
    stages = SeqUnlearn(FineTune(n_epoch=1, bs=2), 3, pending=pending).stages(risk)
    later = [[1, 2], [2], []] if pending == 'retain' else [[], [], []]
    assert [s.retain.tolist() for s in stages] == [sorted([*o, *range(3, 40)]) for o in later]

def test_a_whole_schedule_is_divided_by_the_steps_of_stages():
    how = SeqUnlearn(FineTune(n_epoch=2, bs=5), 4, schedule='whole')
    stages = how.stages(ranked(range(20)))
    steps = [sum(s.steps) for s in stages]
    ends = np.cumsum([0, *steps])/sum(steps)
    assert [s.part for s in stages] == [(a, b) for a, b in zip(ends, ends[1:])] and ends[-1] == 1
    assert {s.part for s in how.replace(schedule='each stage').stages(ranked(range(20)))} == {(0., 1.)}

def test_steps_are_shared_by_group_size_in_every_epoch():
    assert share([10, 10], [1, 3]) == [[2, 3], [8, 7]]
    assert share([6, 3], [1, 1, 1]) == [[2, 1], [2, 1], [2, 1]]
    assert share([0, 0], [1, 2]) == [[], []]

class Fixed:
    "A ranker whose scores are all the same"
    def score(self, learn, at): return np.zeros(len(at))

def test_reranking_keeps_ties_in_the_order_of_positions():
    risk = ranked([1., 4., 2., 3., 0.])
    how = SeqUnlearn(FineTune(n_epoch=1, bs=2), 3, rerank=Fixed)
    todo = how.stages(risk)[1:]
    assert [s.forget.tolist() for s in todo] == [[0, 2], [4]]
    assert [s.forget.tolist() for s in how.replan(todo, risk, None)] == [[0, 2], [4]]
    up = how.replace(order='ascending')
    assert [s.forget.tolist() for s in up.replan(up.stages(risk)[1:], risk, None)] == [[2, 3], [0, 1]]
