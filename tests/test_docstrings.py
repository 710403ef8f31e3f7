"`from rsu.all import *` appends the comments of parameters to the docstrings that `help` shows."
import inspect, pydoc, subprocess, sys

import pytest
import rsu.all
from fastai.learner import Learner
from fastcore.docments import docments
from rsu.core import docstrings
from rsu.all import (SCRUB, ForgetSplit, LiRA, Recipe, ReferenceBank, SeqUnlearn, compare_orders, differences, evaluate,
                     unlearn)

def helped(o): return pydoc.plain(pydoc.render_doc(o))

@pytest.mark.parametrize('o', [evaluate, compare_orders, differences, unlearn, Learner.unlearn, ReferenceBank.fit,
                               Recipe.fit, SeqUnlearn.stages, ForgetSplit.near_duplicates])
def test_help_shows_every_parameter_with_its_comment(o):
    text = ' '.join(helped(o).split())
    names = [k for k in inspect.signature(o).parameters if k != 'self']
    assert names
    comments = {k: c.docment or '' for k, c in docments(o, full=True).items()} # it reads the first line of a comment
    for k in names: assert f"{k}: {''.join(comments[k].splitlines()[:1])}" in text, k

@pytest.mark.parametrize('cls', [SCRUB, SeqUnlearn, Recipe, ForgetSplit, LiRA])
def test_help_shows_every_setting_of_a_class(cls):
    text = helped(cls).partition('Method resolution order')[0]
    assert all(f' {k}: ' in text for k in inspect.signature(cls).parameters), text

def test_a_comment_of_several_lines_is_complete():
    assert 'with the columns `by`' in helped(differences) and 'one for each seed' in helped(evaluate)
    assert "all from one learner and one split" in helped(evaluate)
    assert "a hash of the samples, and `draws`, a dict by measure" in helped(rsu.all.evaluate_runs)

def test_all_public_functions_with_commented_parameters_are_covered():
    lacking = [f.__qualname__ for k in rsu.all.__all__ if callable(o := getattr(rsu.all, k))
               for f in docstrings._callables(o) if inspect.isfunction(f)
               for name, c in docments(f, full=True).items()
               for line in (c.docment or '').splitlines()[:1]
               if name not in ('return', 'self') and line.strip() not in (f.__doc__ or '')]
    assert lacking == []

def test_import_time_grows_by_less_than_five_percent():
    code = ("import time; start = time.process_time(); from rsu.all import *; whole = time.process_time()-start; "
            "import rsu.all; from rsu.core import docstrings as d; d._done.clear(); d._source.cache_clear(); "
            "start = time.process_time(); "
            "d.add_parameters(o for k in rsu.all.__all__ if callable(o := getattr(rsu.all, k))); "
            "print((time.process_time()-start)/whole)")
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, encoding='utf-8',
                          check=True)
    assert float(done.stdout) < .05

def test_without_source_nothing_is_added():
    def alone(x): "Nothing"
    alone.__code__ = alone.__code__.replace(co_filename='nowhere.py')
    docstrings.add_parameters([alone])
    assert alone.__doc__ == 'Nothing'

def test_nbdev_pages_keep_their_tables():
    code = "import nbdev.showdoc; from rsu.all import *; print('Parameters:' in evaluate.__doc__)"
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, encoding='utf-8',
                          check=True)
    assert done.stdout == 'False\n'
