"""Tables of runs: columns have the same meaning everywhere, and a study read from a file works like the original.
Galleries are drawn for all kinds of data."""
import warnings
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import CategoryBlock, Categorify, Normalize, TabularDataLoaders
from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, imagenet_stats
from fastai.vision.all import Normalize as NormalizeImages
from PIL import Image
from rsu.all import *
from rsu.core.config import InputError
from rsu.core.data import Samples
from scipy.stats import t

root = Path(__file__).parent.parent

@pytest.fixture(scope='module')
def made():
    "A study of orders over three seeds, its oracles, and the learner of one of its runs, made again"
    learn = Recipe(small_cnn, n_epoch=2, lr=5e-3).fit(digits(n=300), quiet=True)
    risk = Ranking.from_scores(ForgetSplit(learn.dls, 'random:24', seed=0), np.arange(24.))
    oracles, how = fit_oracles(learn, risk, 3, quiet=True), NegGradPlus(n_epoch=2, lr=.01, bs=32)
    study = compare_orders(learn, risk, ('descending',), how, range(3), 2, oracles, quiet=True)
    return study, oracles, learn.unlearn(risk, SeqUnlearn(how, 2, seed=1), seed=1, quiet=True)

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

def test_errors_in_a_study_equal_those_of_an_evaluation(made):
    study, oracles, new = made
    row = study[(study.order == 'descending') & (study.group == 'all') & (study.seed == 1)].iloc[0]
    same = evaluate_runs(new, oracles, controls=(), quiet=True).set_index('model').loc['unlearned']
    shared = [k for k in study if k in same and k not in ('seconds', 'seed')]
    errors = {'tow_se', 'distance_se', 'auc_se', 'z_se', 'forget_se', 'retain_se', 'valid_se', 'test_se', 'ua_se'}
    assert errors < {*shared}
    np.testing.assert_allclose(row[shared].astype(float), same[shared].astype(float))

def test_errors_of_a_group_are_over_its_samples(made):
    study, _, new = made
    row = study[(study.order == 'descending') & (study.group == '2') & (study.seed == 1)].iloc[0]
    at = np.searchsorted(new.unlearning.split.forget, new.unlearning.groups['2'])
    k, n = new.unlearning.outputs[-1]['forget'].correct[at].sum(), 12
    p = (k+2)/(n+4)
    assert row.forget_se == pytest.approx((p*(1-p)/(n+4))**.5)
    assert row.test_se == pytest.approx(study[study.group == 'all'].test_se[row.name-2])

def test_an_interval_covers_seeds_and_samples(made):
    runs = made[0][made[0].group == 'all']
    res, one = summarise(runs, 'order'), runs[runs.order == 'shuffled']
    for k in ('tow', 'distance', 'forget', 'auc'):
        seeds = t.ppf(.975, 2)*one[k].std()/3**.5
        assert res[f'{k}_ci']['shuffled'] == pytest.approx(np.hypot(seeds, 1.96*one[f'{k}_se'].mean()))
    assert 'steps_ci' not in res and 'tow_sd_ci' not in res
    assert res.tow_sd_ci_seeds['shuffled'] == pytest.approx(t.ppf(.975, 2)*one.tow_sd.std()/3**.5)

def test_an_interval_without_errors_of_samples_is_nan():
    # the error of an AUC over a single sample, for example, is unknown
    runs = pd.DataFrame(dict(model='A', seed=range(3), auc=[.4, .5, .6], auc_se=np.nan))
    assert summarise(runs).auc_ci.isna().all()

def test_two_seeds_give_a_warning(made):
    runs = made[0][(made[0].group == 'all') & (made[0].seed < 2)]
    with pytest.warns(FewSeeds, match='There are only two seeds of descending; shuffled; one-shot: .*three or more'):
        summarise(runs, 'order')
    with pytest.warns(FewSeeds, match='only two seeds'): differences(runs, 'one-shot', 'tow', by='order')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        summarise(runs[runs.order == 'retrain'], 'order') # oracles are not counted as seeds
        summarise(runs[runs.seed == 0], 'order')

def test_rows_of_groups_are_not_counted_as_seeds(made):
    for by in ('order', ['algorithm', 'order']):
        with pytest.raises(InputError, match="several runs of '.*do nothing' with seed 0.*by="): summarise(made[0], by)
    assert summarise(made[0]).index.names == ['algorithm', 'order', 'group']
    with pytest.raises(InputError, match='no column model: they have .*seed'): summarise(made[0].drop(columns='order'))
    assert summarise(made[0], ['order', 'group']).runs.max() == 3
    assert type(summarise(made[0], ['order', 'group'])) is pd.DataFrame

def csv(frame, tmp_path, **kwargs):
    frame.to_csv(tmp_path/'frame.csv', **kwargs)
    return pd.read_csv(tmp_path/'frame.csv')

@pytest.mark.parametrize('index', [True, False])
def test_a_study_read_from_a_file_gives_the_same_tables(made, index, tmp_path):
    study, read = made[0], csv(made[0], tmp_path, index=index)
    by = ['algorithm', 'order', 'group']
    pd.testing.assert_frame_equal(summarise(read, by), summarise(pd.DataFrame(study), by),
                                  check_dtype=False, check_index_type=False)
    whole, again = (o[o.group == 'all'] for o in (study, read))
    for by in ('order', 'algorithm'):
        parts = [o if by == 'order' else o[~o.order.isin(['descending', 'shuffled', 'retrain'])]
                 for o in (whole, again)]
        to = 'one-shot' if by == 'order' else ''
        pd.testing.assert_frame_equal(*(differences(o, to, by=by) for o in parts), check_dtype=False)
    Comparison(read).plot()

def test_differences_of_a_study_are_within_each_algorithm_and_group(made, tmp_path):
    study, algorithm = made[0], made[0].algorithm.max()
    both = pd.concat([study, study[study.algorithm != ''].assign(algorithm='another')])
    apart = differences(both, 'one-shot')
    groups = study.group.nunique()
    assert len(apart) == 2*groups*2*4 and set(apart.algorithm) == {algorithm, 'another'}
    one = differences(study[study.group == 'all'], 'one-shot').drop(columns='p_adjusted')
    part = apart[(apart.algorithm == 'another') & (apart.group == 'all')].drop(columns='p_adjusted')
    pd.testing.assert_frame_equal(part.reset_index(drop=True).assign(algorithm=algorithm), one)
    pd.testing.assert_frame_equal(differences(csv(both, tmp_path), 'one-shot'), apart, check_dtype=False)
    labels = [o.get_text() for o in plot_differences(apart).axes[0].get_yticklabels()]
    assert len(set(labels)) == len(labels) == len(apart)/2
    assert apart.applies_to.eq('1 trained model, 1 forget set').all()
    several = both.assign(trained=['model 1']*len(study)+['model 2']*(len(both)-len(study)))
    assert differences(several, 'one-shot').applies_to.eq('2 trained models, 1 forget set').all()

def test_tables_and_figures_of_a_study_name_the_algorithm_without_its_settings(made):
    study, name = made[0], made[0].algorithm.max().split('(')[0]
    whole = study[study.group == 'all']
    text = format_table(summarise(whole), 'csv')
    assert f'{name},one-shot,all' in text and '-,retrain,all' in text
    apart = differences(whole, 'one-shot')
    label = ' '.join(plot_differences(apart).get_supxlabel().split())
    assert f'difference of {name} from one-shot' in label and '1 trained model, 1 forget set' in label
    other = whole.assign(algorithm=whole.algorithm.str.replace('n_epoch=', 'n_epoch=9'))
    latex = format_table(summarise(pd.concat([whole, other[other.algorithm != '']])))
    settings = whole.algorithm.max()
    assert f': {settings}\n' in latex and f'{name}(n\\_epoch=9' in latex

def test_runs_read_from_a_file_lose_their_draws(made, tmp_path):
    study, oracles, new = made
    runs = evaluate_runs({'A': [new, new], 'B': new}, oracles, controls=(), draws=True, quiet=True)
    runs['seed'] = [0, 0, 1, *runs.seed[3:]]
    read = csv(runs, tmp_path)
    pd.testing.assert_frame_equal(summarise(read[read.model != 'A']), summarise(runs[runs.model != 'A']),
                                  check_dtype=False)
    assert differences(runs[runs.seed == 0], 'do nothing').over.eq('samples').any()
    with pytest.raises(InputError, match='draws was read from text.*Parquet'):
        differences(read[read.seed == 0], 'do nothing')
    assert differences(read[read.seed == 0].drop(columns='draws'), 'do nothing').over.eq('').all()

def test_the_stored_study_of_algorithms_can_be_summarised():
    runs = pd.read_parquet(root/'nbs/experiments/algorithms.parquet')
    with pytest.raises(InputError, match="'retrain' is the mean of 4 runs already"): summarise(runs)
    runs = runs[runs.model != 'retrain']
    with pytest.raises(InputError, match="several runs of 'do nothing' with seed 0.*by="): summarise(runs)
    res, one = summarise(runs, ['panel', 'model']), runs[(runs.panel == 'random') & (runs.model == 'SCRUB')]
    assert len(res) == 63 and (res.runs == 5).all() and not res.columns.duplicated().any()
    half = np.hypot(t.ppf(.975, 4)*one.tow.std()/5**.5, one.tow_ci.mean()) # tow_ci of one run is over samples
    assert res.tow_ci['random', 'SCRUB'] == pytest.approx(half) and 'distance_ci_seeds' in res

def panels(table):
    return [[round(float(x), 6) for x in ax.containers[0][0].get_xdata()] for ax in plot_table(table).axes]

def test_tables_can_be_plotted(made, tmp_path):
    study = made[0][made[0].group == 'all']
    by_order, by_both = summarise(study, 'order'), summarise(study, ['algorithm', 'order'])
    def labels(table): return [o.get_text() for o in plot_table(table).axes[0].get_yticklabels()]
    def floor(table):
        return [o.get_xdata()[0] for o in plot_table(table).axes[0].lines if [*o.get_ydata()] == [0, 1]]
    for table in (by_order, csv(by_order, tmp_path), by_both, csv(by_both, tmp_path)):
        assert panels(table) == [by_order.tow.round(6).tolist(), by_order.auc.round(6).tolist()]
        assert labels(table)[:2] == ['do nothing', 'retrain'] and labels(table)[-1].endswith('one-shot')
        assert by_order.tow['retrain'] in floor(table)
    assert floor(by_order.drop(index='retrain')) == []

@pytest.mark.parametrize('frame, says', [
    (lambda study: study, 'tow_ci.*evaluate or summarise'),
    (lambda study: summarise(study, ['order', 'group']).reset_index('group', drop=True),
     "several rows of 'do nothing'"),
    (lambda study: pd.read_parquet(root/'nbs/experiments/algorithms.parquet'), "several rows of 'do nothing'")])
def test_frames_that_are_not_tables_are_refused(frame, says, made):
    with pytest.raises(InputError, match=says): plot_table(frame(made[0]))

@pytest.fixture
def pictures(tmp_path):
    "Thirty single-coloured pictures, each brighter than the one before, in two folders"
    for i in range(30):
        (tmp_path/'ab'[i%2]).mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), (8*i, 100, 200), dtype=np.uint8)).save(tmp_path/'ab'[i%2]/f'{i:02}.png')
    return ImageDataLoaders.from_folder(tmp_path, valid_pct=.3, seed=1, item_tfms=Resize(16), bs=4, num_workers=0,
                                        batch_tfms=[*aug_transforms(), NormalizeImages.from_stats(*imagenet_stats)])

def test_gallery_of_pictures(pictures):
    at = [4, 0, 7]
    split = ForgetSplit(pictures, range(8))
    fig = gallery(split, at)
    assert len(gallery(split, np.isin(np.arange(split.N), at)).axes) == 3 # a mask
    for ax, i in zip(fig.axes, at):
        item, label = pictures.train_ds[i]
        # neither normalised nor augmented
        np.testing.assert_allclose(ax.images[0].get_array()[8,8], np.asarray(item)[8,8], atol=1.5)
        assert ax.get_title() == pictures.vocab[label]

@pytest.mark.filterwarnings('ignore:The given NumPy array is not writable') # which fastai hands to PyTorch
def test_gallery_of_tables():
    df = pd.DataFrame(dict(x=np.arange(40.), colour=list('abcd')*10, answer=['no', 'yes', 'yes', 'no']*10))
    dls = TabularDataLoaders.from_df(df, y_names='answer', cat_names=['colour'], cont_names=['x'],
                                     procs=[Categorify, Normalize],
                                     y_block=CategoryBlock, bs=8, valid_idx=range(30, 40))
    fig = gallery(ForgetSplit(dls, range(6)), [5, 2])
    for ax, i in zip(fig.axes, [5, 2]):
        row = dls.train_ds.items.iloc[i]
        assert [o.get_width() for o in ax.patches] == pytest.approx([row.colour, row.x], abs=1e-5)
        assert ax.get_title() == df.answer[i]

@pytest.mark.parametrize('shape', [(4,), (1, 5, 5), (3, 5, 5), (2, 5, 5), (5, 5)])
def test_gallery_of_tensors(shape):
    dls = loaders(*(Samples(torch.randn(n, *shape), torch.arange(n) % 2, ['price: $1', 'cost $2$'])
                    for n in (20, 8, 8)))
    assert [ax.get_title() for ax in gallery(ForgetSplit(dls, [1, 2]), [1, 2]).axes] == [r'cost \$2\$', r'price: \$1']
    plt.gcf().canvas.draw()

def test_a_gallery_without_samples_is_refused():
    split = ForgetSplit(digits(n=100), [1, 2])
    with pytest.raises(InputError, match='no sample'): gallery(split, [])
    with pytest.raises(InputError, match='no training sample 100.*0 to 99'): gallery(split, [3, 100])
