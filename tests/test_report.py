"""The report of a run: the first screen has the right answer for runs that forget, change nothing, damage or diverge,
and no figure is shown as NaN."""
import re

import numpy as np, pandas as pd, pytest
from rsu.app.report import carried_out, figures, in_brief, load_run, table_html, verdict
from rsu.evaluation.evaluate import main_measures
from rsu.evaluation.verdict import judge, verdict_table
from scipy.stats import t
from test_markup import Page

# 500 digits, 30 with a wrong label that the model memorises
wrong = ('--data digits --n 500 --forget mislabelled:30 --train-epochs 12 --ranker confidence --groups 1 --oracles 3 '
         '--seed 0').split()
easy = '--data digits --forget random:60 --ranker confidence --groups 1 --oracles 3 --algorithm scrub --seed 0'.split()

@pytest.mark.filterwarnings('ignore::rsu.algorithms.base.Diverged')
@pytest.mark.parametrize('options, outcome, words', [
    ([*wrong, '--algorithm', 'neggradplus', '--n-epoch', 20, '--lr', .01], 'forgotten', 'It was completed'),
    ([*wrong, '--algorithm', 'finetune', '--n-epoch', 1, '--lr', 1e-7], 'not forgotten', 'It was completed'),
    ([*wrong, '--algorithm', 'gradascent', '--n-epoch', 4, '--lr', .01], 'damaged', 'accuracy on test samples'),
    ([*wrong, '--algorithm', 'gradascent', '--n-epoch', 4, '--lr', 10], 'diverged', '**1 of 1 stages diverged**'),
    (easy, 'nothing to forget', 'not even before unlearning')])
def test_the_verdict_of_a_run(options, outcome, words, here, no_report):
    assert no_report(*options, '--out', 'out') == 0
    run = load_run('out')
    brief = in_brief(run)
    assert judge(run.table, stages=run.stages).outcome == outcome, run.table[main_measures].round(3).to_string()
    assert f'**Did it work?** **{outcome.capitalize()}**: ' in brief and words in brief
    assert verdict(run.table, stages=run.stages).startswith(f'**{outcome.capitalize()}.** ')
    assert [o.split(':')[0] for o in brief.split('\n\n')] == ['**Asked', '**Done', '**Did it work?** **'
            + outcome.capitalize() + '**', '**Cost']

def test_the_first_screen_comes_first(whole):
    text = Page((whole.out/'report.html').read_text(encoding='utf-8')).text
    at = [text.index(o) for o in ('Asked:', 'Done:', 'Did it work?', 'Cost:', 'What the evidence supports')]
    assert at == sorted(at)

def test_undefined_figures_are_empty_and_explained(whole):
    run = load_run(whole.out)
    page = table_html(run.table[main_measures])
    undefined = [k for k in main_measures if run.table[k].isna().any()]
    assert 'z' in undefined, 'two oracles: each is compared with a single other one'
    assert 'z: undefined against a single oracle' in page
    whole_page = re.sub('<[^>]+>', ' ', (whole.out/'report.html').read_text(encoding='utf-8'))
    assert not re.search(r'\bnan\b', whole_page) and not re.search(r'\bNaN\b(?! (for|if|against))', whole_page)
    for name in main_measures: # each measure that can be undefined has a reason
        one = table_html(run.table[[name]].assign(**{name: np.nan}))
        assert 'Empty cells' in one and 'nan' not in one.lower()

def test_a_training_function_counts_no_steps(whole):
    run = load_run(whole.out)
    run.stages = run.stages.assign(steps=np.nan, samples=np.nan)
    assert 'nan' not in carried_out(run) and 'steps' not in carried_out(run)
    assert 'steps: undefined for a training function' in table_html(run.stages)

def test_an_undefined_ratio_is_left_out(whole):
    run = load_run(whole.out)
    run.table = run.table.assign(ratio=np.nan)
    assert 'nan' not in in_brief(run) and 'of the time' not in in_brief(run)
    assert 'nan' not in figures(run.table).to_string()

def test_the_cost_includes_the_bank(whole):
    run = load_run(whole.out)
    assert run.facts['references'] == (run.settings.references if (whole.out/'bank').is_dir() else 0)
    run.facts['references'] = 8
    assert 'The ranking also needed 8 reference models, once: about 4 trainings.' in in_brief(run)
    del run.facts['references'] # runs of older versions
    assert 'reference models, once' not in in_brief(run)

def test_every_verdict_is_explained():
    table = verdict_table()
    assert len(table) == 9 and table.map(len).min().min() > 20

@pytest.mark.parametrize('n, least', [(2, .75), (3, .85), (8, .85)]) # the spread of two models is poorly known
def test_retrained_models_are_indistinguishable_from_retrained_models(n, least):
    "The spread of single retrained models, estimated from the interval of their mean, covers about 95% of them"
    rng = np.random.default_rng(0)
    def outcome():
        auc = rng.normal(.5, .08, n+1)
        half = 1.96*.04
        ci = np.hypot(t.ppf(.975, n-1)*auc[:n].std(ddof=1)/n**.5, half)
        one = dict(runs=1, forget=.1, retain=1., test=.95, tow=.98, tow_ci=.02, auc=auc[n], auc_ci=half)
        rows = {'do nothing': dict(one, auc=1., tow=.1), 'unlearned': one, 'retrain': dict(one, runs=n,
                auc=auc[:n].mean(), auc_ci=ci)}
        return judge(pd.DataFrame(rows).T).attack
    assert np.mean([outcome() in ('closed', 'unknown') for _ in range(300)]) > least
