"Plots of what a page does not show: names that are long, and rankings that cannot be compared."
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from rsu.algorithms.unlearn import Unlearning
from rsu.app.plot import plot_agreement, plot_outcome, plot_stages, plot_table
from rsu.core.config import InputError
from rsu.core.datasets import digits
from rsu.core.split import ForgetSplit
from rsu.ranking.rankers import Ranking

def test_squares_of_two_rankers_with_long_names_are_visible():
    rng = np.random.default_rng(0)
    names = ['a ranker of a long name', 'another of a long name']
    ax = plot_agreement(pd.DataFrame(rng.normal(size=(400, 2)), columns=names))
    ax.figure.canvas.draw()
    plt.close()
    assert min(ax.get_window_extent().size) > 60
    title = ax.get_title(loc='left')
    assert title.count('alike') == 1 and 'least' not in title

def test_rankings_that_cannot_be_compared():
    dls = digits(n=100)
    one, other = (ForgetSplit(dls, o) for o in ([1, 2, 3], [4, 5]))
    a, b = Ranking.from_scores(one, [1, 2, 3], 'a'), Ranking.from_scores(other, [1, 2], 'b')
    with pytest.raises(InputError, match='two rankings of different names, and there is 1'): plot_agreement([a])
    with pytest.raises(InputError, match='The rankings are of different samples'): plot_agreement([a, b])
    with pytest.raises(InputError, match="'b' gives all samples one score"):
        plot_agreement({'a': a, 'b': Ranking.from_scores(one, [1, 1, 1])})

def flat_record():
    "A record of two stages after which nothing has changed"
    same = {k: 1. for k in ('forget', 'group 1', 'group 2', 'retain', 'valid', 'test')}
    rows = [dict(same, stage=i, group=f'{i}', n=10, steps=5, samples=50, seconds=1., memory=0., ended='done')
            for i in (1, 2)]
    return Unlearning(None, None, None, 0, same, pd.DataFrame(rows))

def test_a_plot_of_stages_says_that_nothing_changed():
    ax = plot_stages(flat_record(), oracle=dict(forget=.97))
    assert ax.get_title('left') == 'Samples to forget: accuracy 100% before and after, retrained 97%'
    assert np.ptp(ax.get_ylim()) >= .2 - 1e-9
    changed = flat_record()
    changed.stages['forget'] = [.4, .025]
    assert plot_stages(changed).get_title('left') == 'Samples to forget: accuracy 100% before, 2% after'
    plt.close('all')

def test_small_differences_do_not_look_large():
    rows = dict(runs=[1, 1, 3], forget=.97, retain=1., test=.96, tow=[.977, .978, .979], tow_ci=.003,
                auc=[.501, .502, .5], auc_ci=.01)
    table = pd.DataFrame(rows, index=['do nothing', 'unlearned', 'retrain'])
    for ax in plot_table(table).axes:
        assert np.ptp(ax.get_xlim()) >= .2 - 1e-9 and 'no clear difference' in ax.get_title('left')
    apart = table.assign(tow=[.5, .97, .979])
    titles = [ax.get_title('left') for ax in plot_table(apart).axes]
    assert titles == ['Accuracy: the line is retraining', 'Attack: no clear difference from retraining']
    assert plot_outcome(table).get_suptitle().startswith('Nothing to forget. ')
    plt.close('all')
