"Retraining and SISA: settings and requests that they reject."
import pytest
from rsu.algorithms.exact import SISA, Retrain
from rsu.core.config import InputError
from rsu.core.datasets import digits
from rsu.core.recipe import Recipe, small_cnn

@pytest.fixture(scope='module')
def dls(): return digits(n=60, device='cpu')

@pytest.mark.parametrize('settings, words', [
    (dict(vote='majority'), "vote='majority' must be 'label' or 'mean'"),
    (dict(slices=0), r'slices=0 must be a whole number in \[1, inf\)'),
    (dict(shards=2.5), r'shards=2.5 must be a whole number in \[1, inf\)'),
    (dict(bs=32), 'bs cannot be given here')])
def test_settings_of_sisa(settings, words):
    with pytest.raises(InputError, match=words): SISA(**settings)

def test_retraining_uses_no_sample_to_forget():
    with pytest.raises(InputError, match='bs_forget would change nothing'): Retrain(bs_forget=4)

@pytest.mark.parametrize('how', [SISA(), Retrain()])
def test_no_stage_of_a_sequence(how):
    with pytest.raises(InputError, match='cannot be a stage of a sequence'): how.budget(None)

def test_more_slices_than_samples(dls):
    with pytest.raises(InputError, match='too few for 400 shards of 5 slices'):
        SISA(shards=400).fit(dls, Recipe(small_cnn))

def test_a_recipe_function_has_no_checkpoints(dls):
    with pytest.raises(InputError, match='give a Recipe'): SISA().fit(dls, lambda dls: None)
