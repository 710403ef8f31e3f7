"Every column that a function for `evaluate(..., more=[...])` returns is defined in `measure_table`."
import pytest
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.evaluation.audit import bank_columns, shadows, u_lira_columns
from rsu.evaluation.compare import evaluate_stages
from rsu.evaluation.evaluate import evaluate, measure_table
from rsu.evaluation.one_run import Canaries, one_run_columns
from rsu.evaluation.relearn import relearn_columns
from rsu.evaluation.representations import barrier_columns, cka_columns, probe_columns
from rsu.evaluation.three_samples import relative_mmd_columns
from rsu.evaluation.two_models import two_model_columns
from rsu.ranking.bank import ReferenceBank

def u_lira_of(learn, split): return u_lira_columns(shadows(learn, split.forget, 6))

def two_models_of(learn, split): return two_model_columns(shadows(learn, split.forget, 6), classifier='logistic')

def one_run_of(learn, split):
    "The columns of a learner that was trained on canaries"
    canaries = Canaries(learn.dls, 'random:40')
    new = unlearn(learn.recipe.replace(n_epoch=1).fit(canaries.dls, quiet=True), canaries, FineTune(n_epoch=0),
                  quiet=True)
    return lambda *_: one_run_columns(canaries)(new, canaries)

# Adding a function means adding a row here, and its columns to `_more_measures` in the notebook of `evaluate`.
functions = {'bank_columns': lambda learn, split: bank_columns(ReferenceBank.fit(learn, 2, quiet=True)),
             'u_lira_columns': u_lira_of, 'relearn_columns': lambda learn, split: relearn_columns(),
             'one_run_columns': one_run_of, 'two_model_columns': two_models_of,
             'relative_mmd_columns': lambda learn, split: relative_mmd_columns([learn, learn]),
             'cka_columns': lambda learn, split: cka_columns([learn]),
             'probe_columns': lambda learn, split: probe_columns(),
             'barrier_columns': lambda learn, split: barrier_columns([learn])}

def test_every_function_of_the_table_is_tested_here():
    assert set(measure_table().of) - {'evaluate', 'stage_changes', 'evaluate_stages'} == set(functions)

@pytest.mark.parametrize('name', functions)
def test_every_column_is_defined(name, learn, split):
    columns = functions[name](learn, split)(unlearn(learn, split, FineTune(n_epoch=0), quiet=True), split)
    assert {c for c in columns if not c.endswith('_se')} == set(measure_table(name).index)

def test_evaluate_shows_the_columns_that_were_asked_for(learn, split):
    new = unlearn(learn, split, FineTune(n_epoch=0), quiet=True)
    table = evaluate(new, [new, new], controls=(), quiet=True,
                     more=[lambda learn, split: dict(mine=1., mine_se=.1)])
    assert {'mine','mine_ci','tow'} <= set(table) and 'svc_entropy' not in table

def test_every_column_of_stages_is_defined(learn, split):
    new = unlearn(learn, split, FineTune(n_epoch=0), quiet=True)
    columns = set(evaluate_stages(new, [new, new], quiet=True)) - {'stage', 'forgot', 'group'}
    assert {c for c in columns if not c.endswith('_se')} <= set(measure_table().index)
    assert set(measure_table('stage_changes').index) | set(measure_table('evaluate_stages').index) < columns
