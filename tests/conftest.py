"Runs that several files of tests look at."
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from common import call, shell, small

@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    "A whole run, from a shell in an empty folder. Nobody writes into it."
    cwd = tmp_path_factory.mktemp('whole')
    done = shell('run', *small, '--out', 'out', cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(cwd=cwd, out=cwd/'out', done=done)

@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder to work in; what a run puts on the path is taken off again, and what it imports from here is forgotten."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    yield tmp_path
    for k in [k for k, o in sys.modules.items() if str(getattr(o, '__file__', None)).startswith(f'{tmp_path}/')]: del sys.modules[k]

@pytest.fixture
def no_report(monkeypatch):
    "Runs in this process without their last part: a kernel for each report would take longer than all the rest."
    def write_report(out, **kwargs):
        (out/'report.html').write_text('not made here', encoding='utf-8')
        return out/'report.html'
    monkeypatch.setattr('rsu.app.pipeline.write_report', write_report)
    return partial(call, 'run')
