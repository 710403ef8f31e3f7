"`make gpu`: which cells run, in which order, what the deadline leaves out, and what the table reports."
import importlib.util, json, subprocess, sys, time
from pathlib import Path

import pandas as pd, pytest

ci = Path(__file__).parents[1]/'.ci'

@pytest.fixture
def gpu(monkeypatch):
    "The script as a module"
    monkeypatch.syspath_prepend(ci)
    spec = importlib.util.spec_from_file_location('gpu', ci/'gpu.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'gpu', module)
    spec.loader.exec_module(module)
    return module

def notebook(path, *cells):
    "A notebook of code cells"
    path.parent.mkdir(exist_ok=True)
    nb = dict(cells=[dict(cell_type='code', id=f'{i:08x}', metadata={}, outputs=[], execution_count=None, source=o)
                     for i, o in enumerate(cells)], metadata={}, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(nb), encoding='utf-8')
    return path

setup = """#| gpu_setup
scale, figures = dict(n=10, networks=('small', 'large')), []
def figure(name, value): figures.append(dict(name=name, value=value))"""
never = "raise SystemError('a cell that is not for a GPU')"

def test_only_setup_and_gpu_cells_run(gpu, tmp_path):
    file = notebook(tmp_path/'speed.ipynb', never, setup, "#| cuda\nfigure('n', scale['n'])", "figure('other', 1)",
                    "#| cuda\nfigure('networks', len(scale['networks']))")
    def figures(changes): return {o['name']: o['value'] for o in gpu.speed(str(file), changes, time.monotonic() + 300)}
    assert figures({}) == dict(n=10, networks=2)
    assert figures(dict(n=3)) == dict(n=3, networks=1)

def test_a_failing_cell_and_a_deadline_keep_the_figures_before_them(gpu, tmp_path):
    first = "#| cuda\nfigure('first', 1.5)"
    fails = notebook(tmp_path/'fails.ipynb', setup, first, "#| cuda\nraise KeyError('gone')",
                     "#| cuda\nfigure('last', 2)")
    rows = gpu.speed(str(fails), {}, time.monotonic() + 300)
    assert [(o['name'], o['result']) for o in rows] == [('first', 'measured'), ('cell 3 of 4', "KeyError: 'gone'")]
    dies = notebook(tmp_path/'dies.ipynb', setup, first, "#| cuda\nimport os; os._exit(9)")
    rows = gpu.speed(str(dies), {}, time.monotonic() + 300)
    assert [(o['name'], o['result']) for o in rows] == [('first', 'measured'), ('after cell 2 of 3', 'failed')]
    slow = notebook(tmp_path/'slow.ipynb', setup, first, "#| cuda\nimport time; time.sleep(600)")
    start = time.monotonic()
    rows = gpu.speed(str(slow), {}, start + 15)
    assert rows[-1]['result'] == 'not run' and time.monotonic() - start < 60
    assert [o['name'] for o in rows[:-1]] in ([], ['first']) # a busy machine may not reach the first figure in 15 s
    assert gpu.speed(str(slow), {}, start) == [dict(part='speed', name='after cell 0 of ?', result='not run')]

@pytest.fixture
def three_parts(gpu, monkeypatch):
    "Replaces the parts of a run by functions that only record their calls; returns the list of calls"
    calls = []
    def test(files, n_workers, deadline):
        calls.append(('test', sorted(files), round(deadline - time.monotonic())))
        return [dict(part='test', name=o, result='passed') for o in files]
    def speed(file, changes, deadline):
        calls.append(('speed', Path(file).name, round(deadline - time.monotonic())))
        return [dict(part='speed', name='a figure', value=2., unit='s', result='measured'),
                dict(part='speed', name='after cell 2 of 3', result='not run')]
    monkeypatch.setattr(gpu, 'test', test)
    monkeypatch.setattr(gpu, 'speed', speed)
    monkeypatch.chdir(ci.parent)
    return calls

def test_gpu_notebooks_come_first_and_speed_runs_alone(gpu, three_parts, tmp_path, capsys):
    assert gpu.main(['--cpu', '--minutes', '8', '--out', str(tmp_path/'gpu.parquet')]) == 0
    (_, first, early), (_, file, middle), (_, rest, late) = three_parts
    assert file == 'speed.ipynb' and (early, middle, late) == (216, 456, 480)
    assert {'core/02_data.ipynb', 'core/10_stacked.ipynb', 'algorithms/09_many.ipynb'} <= {*first}
    assert 'core/06_split.ipynb' in rest and not {*first} & {*rest}
    assert not any(o.startswith('experiments/') for o in [*first, *rest])
    table = pd.read_parquet(tmp_path/'gpu.parquet')
    assert len(table) == len(first) + 2 + len(rest) and set(table.device) == {'cpu'}
    assert table[table.name == 'a figure'].value.item() == 2
    assert 'Not run within 8 minutes: after cell 2 of 3' in capsys.readouterr().out

def test_a_failed_cell_sets_the_exit_code(gpu, three_parts, monkeypatch):
    monkeypatch.setattr(gpu, 'speed', lambda *args: [dict(part='speed', name='cell 3 of 4', result='KeyError')])
    assert gpu.main(['--cpu']) == 1

def test_without_a_gpu_the_script_fails_with_a_message(tmp_path):
    torch = pytest.importorskip('torch')
    if torch.cuda.is_available(): pytest.skip('there is a GPU here')
    command = [sys.executable, ci/'gpu.py', '--out', tmp_path/'gpu.parquet']
    done = subprocess.run(command, capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 1 and 'No CUDA device here' in done.stderr and not (tmp_path/'gpu.parquet').exists()

def test_gpu_cells_depend_only_on_marked_cells(gpu):
    "On the speed page, cells for a GPU use only names that cells run by `make gpu` define"
    import ast, builtins
    cells = gpu.read_nb(ci.parent/'nbs/experiments/speed.ipynb').cells
    trees = [ast.parse(o.source) for o in cells if gpu.directives(o) & {'gpu_setup', 'cuda'}]
    names = [o for tree in trees for o in ast.walk(tree)]
    stored = {o.id for o in names if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
    stored |= {o.name for o in names if isinstance(o, (ast.FunctionDef, ast.ClassDef))}
    stored |= {o.arg for o in names if isinstance(o, ast.arg)}
    stored |= {(o.asname or o.name).split('.')[0] for o in names if isinstance(o, ast.alias)}
    space = {}
    exec('from rsu.all import *', space)
    used = {o.id for o in names if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load)}
    assert used - stored - {*space} - {*dir(builtins)} == set()
