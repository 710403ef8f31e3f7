"The notebooks run as in Jupyter: a kernel of its own for each, every cell, and no directive that only nbdev reads."
import importlib.util, json, subprocess, sys
from pathlib import Path

import pytest

ci = Path(__file__).parents[1]/'.ci'

def load(name, monkeypatch):
    "A script of .ci as a module"
    monkeypatch.syspath_prepend(ci)
    spec = importlib.util.spec_from_file_location(name, ci/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module

def notebook(path, *cells):
    "A notebook of code cells"
    nb = dict(cells=[dict(cell_type='code', id=f'{i:08x}', metadata={}, outputs=[], execution_count=None, source=o)
                     for i, o in enumerate(cells)], metadata={}, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(nb), encoding='utf-8')
    return path

like_jupyter = """import asyncio, os
from fastcore.imports import IN_NOTEBOOK
assert IN_NOTEBOOK and asyncio.get_running_loop() and os.path.exists('first.ipynb') and __name__ == '__main__'
state = 'of the first notebook'"""

def test_each_notebook_has_a_kernel_of_its_own_and_every_cell_runs(monkeypatch, tmp_path):
    notebooks = load('notebooks', monkeypatch)
    files = [notebook(tmp_path/'first.ipynb', like_jupyter, "assert state == 'of the first notebook'"),
             notebook(tmp_path/'second.ipynb', "assert 'state' not in globals()"),
             notebook(tmp_path/'third.ipynb', "#| eval: false\nraise KeyError('only nbdev skips this cell')"),
             notebook(tmp_path/'fourth.ipynb', "import os; os._exit(9)")]
    done = {}
    for (file,), message in notebooks.in_processes(notebooks.run_notebook, [(f,) for f in files], 2):
        if message: done[file.name] = message[0]
    assert done.pop('third.ipynb').count('only nbdev skips this cell')
    assert done == {'first.ipynb': '', 'second.ipynb': ''} # the process of the fourth died

@pytest.mark.parametrize('source, problem', [
    ('#| eval: false\nf()', 'skipped by nbdev'), ('#| slow\nf()', 'skipped by nbdev'),
    ('#| cuda\nf()', 'needs a GPU'), ('#| cuda\nif torch.cuda.is_available():\n    f()', None), ('f()', None)])
def test_cells_that_jupyter_would_run_unlike_nbdev_are_refused(monkeypatch, source, problem):
    found = [*load('step', monkeypatch).source_problems(source)]
    assert found == [] if problem is None else problem in found[0]

def test_a_cell_that_skips_itself_keeps_its_outputs(tmp_path):
    path = notebook(tmp_path/'page.ipynb', 'full = False', "if full: print('of a full run')", "print('new')", 'pass')
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']: cell['outputs'] = [dict(output_type='stream', name='stdout', text=['stored'])]
    path.write_text(json.dumps(nb), encoding='utf-8')
    subprocess.run([sys.executable, ci/'outputs.py', path], check=True, capture_output=True)
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    assert [''.join(o['text']).strip() for c in cells for o in c['outputs']] == ['stored', 'new']
