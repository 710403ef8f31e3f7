"Plots of what a page does not show: names that are long, and rankings that cannot be compared."
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from rsu.app.plot import plot_agreement
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
