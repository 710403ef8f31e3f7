"Fixtures that several test files use."
# One thread per process, as in `make test`: with more, sums are rounded differently and equal trainings differ.
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import shutil, sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import call, make_clinic, shell, small
from hypothesis import HealthCheck, settings
from rsu.core.datasets import digits
from rsu.core.recipe import Recipe, small_cnn
from rsu.core.split import ForgetSplit

# The same examples in every run, so that a failure can be repeated. No deadline: the first example includes imports.
settings.register_profile('rsu', max_examples=40, deadline=None, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('rsu')

@pytest.fixture(scope='module')
def learn():
    "A small network after one epoch on 200 digits"
    return Recipe(small_cnn, n_epoch=1, lr=5e-3).fit(digits(n=200), quiet=True)

@pytest.fixture
def split(learn):
    "A request for 12 samples of `learn`"
    return ForgetSplit(learn.dls, 'random:12', seed=0)

@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    "A finished run, started from a shell in an empty folder. No test may write into it."
    cwd = tmp_path_factory.mktemp('whole')
    done = shell('run', *small, '--out', 'out', cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(cwd=cwd, out=cwd/'out', done=done)

@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder as the current one. Changes of sys.path and modules imported from here are undone at the end."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    yield tmp_path
    local = [k for k, o in sys.modules.items() if str(getattr(o, '__file__', None)).startswith(f'{tmp_path}/')]
    for k in local: del sys.modules[k]

@pytest.fixture
def no_report(monkeypatch):
    "`rsu run` in this process, without its report: starting a kernel would take longer than the run"
    def write_report(out, **kwargs):
        (out/'report.html').write_text('not made here', encoding='utf-8')
        return out/'report.html'
    monkeypatch.setattr('rsu.app.pipeline.write_report', write_report)
    return partial(call, 'run')

@pytest.fixture
def no_page(monkeypatch):
    "`rsu forget` in this process. The page of a request says only how many were written before, for speed."
    written = []
    def write_page(out, request):
        page = Path(out)/f'report-{request:04}.html'
        written.append(page.write_text(f'page {len(written)}', encoding='utf-8'))
        return page
    monkeypatch.setattr('rsu.app.pipeline.write_page', write_page)
    return call

@pytest.fixture(scope='session')
def clinic(tmp_path_factory):
    "A folder with a user's module, weights and bank. No test may write into it."
    return make_clinic(tmp_path_factory.mktemp('clinic'))

@pytest.fixture
def in_clinic(clinic, here):
    "A copy of the clinic as the current folder; its module can be imported."
    shutil.copytree(clinic, here, dirs_exist_ok=True)
    sys.path.insert(0, str(here)) # which `here` undoes
    return here
