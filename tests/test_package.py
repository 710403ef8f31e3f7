"The package as a whole: it can be imported in silence, and every name in it says what it is."
import ast, importlib, importlib.util, inspect, pkgutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import rsu
from fastcore.docments import docments

root = Path(__file__).parent.parent
found = {o.name.removeprefix('rsu.'): o.ispkg for o in pkgutil.walk_packages(rsu.__path__, 'rsu.')}
packages = sorted(k for k, whole in found.items() if whole)
modules = sorted(k for k, whole in found.items() if not whole and k not in ('_modidx', '__main__'))

def public(module): return {k: getattr(importlib.import_module(f'rsu.{module}'), k) for k in importlib.import_module(f'rsu.{module}').__all__}

def own(module): return {k: o for k, o in public(module).items() if callable(o) and getattr(o, '__module__', None) == f'rsu.{module}'}

def parts(module):
    "What a module offers that takes arguments: by name, and for methods beside each the same method of the bases, which may document it."
    for k, o in own(module).items():
        if not inspect.isclass(o): yield k, [o]; continue
        # values and their fields; docments does not read named tuples, and what else has no __init__ of its own takes what its base takes
        if hasattr(o, '__dataclass_fields__'): yield k, [c for c in o.__mro__ if hasattr(c, '__dataclass_fields__')]
        for name, f in vars(o).items():
            if name[0] == '_' and (name != '__init__' or hasattr(o, '__dataclass_fields__')) or hasattr(o, '_fields'): continue
            bases = [getattr(f, '__func__', f) for f in (vars(c).get(name) for c in o.__mro__ if c.__module__.startswith('rsu.')) if f is not None]
            if bases and inspect.isfunction(bases[0]): yield f'{k}.{name}', bases

def test_imports_in_silence():
    # -W cannot take a pattern: these are the beginnings of what torch and fastai say of themselves, as in pyproject.toml
    ignored = [a for o in ("`torch.jit.script` is deprecated:FutureWarning", "The 'mode.chained_assignment' option is deprecated") for a in ('-W', f'ignore:{o}')]
    code = '; '.join(f'import rsu.{o}' for o in modules)
    done = subprocess.run([sys.executable, '-W', 'error', *ignored, '-c', code],
                          capture_output=True, text=True, encoding='utf-8')
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')

def test_drawing_is_not_imported_by_what_does_not_draw():
    # matplotlib is there already: fastai imports it. Seaborn is ours
    others = [o for o in modules if o not in ('app.plot', 'all')]
    code = f"import sys; {'; '.join(f'import rsu.{o}' for o in others)}; print([o for o in ('seaborn', 'nbconvert', 'nbclient', 'IPython.display') if o in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8')
    assert done.stdout == '[]\n', done.stderr

@pytest.mark.parametrize('package', packages)
def test_every_package_has_a_docstring(package):
    assert importlib.import_module(f'rsu.{package}').__doc__

@pytest.mark.parametrize('module', modules)
def test_every_name_has_a_docstring(module):
    assert importlib.import_module(f'rsu.{module}').__doc__
    # what a class inherits is not its own docstring
    lacking = [k for k, o in public(module).items() if callable(o) and not (vars(o).get('__doc__') if inspect.isclass(o) else o.__doc__)]
    assert lacking == []

@pytest.mark.parametrize('module', modules)
def test_every_parameter_is_documented(module):
    lacking = []
    for k, same in parts(module):
        said = {name for f in same for name, doc in docments(f, full=True).items() if doc.docment}
        said |= {name for name, f in getattr(same[0], '__dataclass_fields__', {}).items() if f.metadata.get('help')}
        asks = [n for n, p in inspect.signature(same[0]).parameters.items() if n not in ('self', 'cls') and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        lacking += [f'{k}({n})' for n in asks if n not in said]
    assert not lacking, '\n'.join(lacking)

def test_the_version_is_written_once():
    settings = ConfigParser()
    settings.read(root/'settings.ini')
    assert rsu.__version__ == settings['DEFAULT']['version']

def test_names_are_nobody_elses():
    # `from rsu.all import *` must not take a name from Python or from fastai's star imports
    import builtins
    from fastai import basics
    from rsu import all as every
    assert [o for o in every.__all__ if hasattr(builtins, o)] == []
    theirs = {o for o in vars(basics) if o[0] != '_'}
    assert sorted(theirs & set(every.__all__)) == []

def test_no_name_is_offered_twice():
    offered = {}
    for m in modules:
        for k in importlib.import_module(f'rsu.{m}').__all__:
            if m != 'all': offered.setdefault(k, []).append(m)
    assert {k: v for k, v in offered.items() if len(v) > 1} == {}

# In a process that has made no optimiser of PyTorch's, as where a model comes that was trained elsewhere.
late = """
import sys, time, warnings
import rsu.core.recipe, rsu.algorithms.many, rsu.algorithms.base
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from rsu.all import *
from rsu.core.config import InputError
warnings.simplefilter('ignore')
learn = Learner(digits(n=100), small_cnn(1, 10), CrossEntropyLossFlat())
split, loaded = ForgetSplit(learn.dls, 'class:3'), []
def clock():
    loaded.append(set(sys.modules))
    return time.perf_counter()
rsu.core.recipe.perf_counter = rsu.algorithms.many.perf_counter = rsu.algorithms.base.perf_counter = clock
def tell(name): print(name, len(loaded) > 1, sorted(loaded[-1]-loaded[0]))
"""
each = late + """
for name, how in algorithms().items():
    one = how()
    loaded.clear()
    try: learn.unlearn(split, one.replace(n_epoch=2) if (one.n_epoch or 0) > 2 else one, quiet=True)
    except InputError: continue # no recipe, no shards
    tell(name)
"""
together = late + """
list(rsu.algorithms.many._abreast(learn, [Job(split, FineTune(n_epoch=1), 0)], [FineTune(n_epoch=1)], 1))
tell('side by side')
"""

@pytest.mark.parametrize('code, n', [(each, 18), (together, 1)], ids=['each', 'together'])
def test_no_run_pays_for_what_pytorch_loads_late(code, n, tmp_path):
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          encoding='utf-8')
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) >= n and [o for o in told if not o.endswith('True []')] == []

slow = {'torch', 'fastai', 'numpy', 'pandas', 'scipy', 'sklearn', 'matplotlib', 'optuna'}
at_once = """
import sys, time
from rsu.__main__ import main
try: main({args!r})
except SystemExit as e: code = e.code or 0
print(code, *sorted({slow!r} & set(sys.modules)), time.process_time() < .5)
"""

@pytest.mark.parametrize('line, code, words', [
    ('--help', 0, '{run,tune,forget}'), ('run --help', 0, 'rmia, attackr'), ('forget --help', 0, 'neggradplus'), ('', 2, 'rsu --help'),
    ('run --seeds 3 --out x', 2, 'unrecognized arguments'), ('run --ranker lyra --out x', 2, "did you mean 'lira'"),
    ('run --data digit --out x', 2, "did you mean 'digits'"), ('run --network resnet --out x', 2, "did you mean 'cifar_resnet18'"),
    ('tune --algorithm scrub,scrap --out x', 2, "did you mean 'scrub'"), ('run --repair scrap --out x', 2, "did you mean 'scrub'"),
    ('forget --data m:f --weights w --forget i.csv --rerank lyra --out x', 2, "did you mean 'lira'")])
def test_help_and_misspelt_names_do_not_wait_for_pytorch(line, code, words, tmp_path):
    done = subprocess.run([sys.executable, '-c', at_once.format(args=line.split(), slow=slow)], cwd=tmp_path, timeout=60,
                          capture_output=True, text=True, encoding='utf-8')
    assert done.stdout.splitlines()[-1] == f'{code} True', done.stderr
    assert words.lower() in (done.stdout + done.stderr).lower()
    assert not list(tmp_path.iterdir())

def ours(table, *modules): return {k: o for k, o in table.items() if o.__module__.startswith(modules or 'rsu.')}

def test_names_are_those_of_what_is_defined():
    from rsu.all import algorithms, rankers
    from rsu.core.config import _functions, value_classes
    from rsu.core.names import load, names
    for m in modules: importlib.import_module(f'rsu.{m}')
    named = {kind: {k: load(kind, k) for k in every} for kind, every in names.items()}
    assert named['algorithm'] == ours(algorithms())
    assert named['ranker'].pop('lira-offline') is named['ranker']['lira']
    assert named['ranker'] == {k.lower(): o for k, o in ours(rankers(), 'rsu.ranking').items()}
    every = {o.__name__: o for kind in named.values() for o in kind.values()}
    assert every == {k: o for k, o in ours({**_functions, **value_classes}).items() if k[0] != '_'}

def test_dependencies_point_one_way():
    "Each part imports from the parts before it; ranking and algorithms do not import each other."
    parts = ['core', 'ranking', 'algorithms', 'sequence', 'evaluation', 'erasure', 'app']
    wrong = []
    for path in sorted((root/'rsu').glob('*/*.py')):
        part, package = path.parent.name, f'rsu.{path.parent.name}'
        if part not in parts: continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import): names = [o.name for o in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [importlib.util.resolve_name('.'*node.level + (node.module or ''), package)]
            else: continue
            for name in names:
                other = (name.split('.') + [''])[1] if name.startswith('rsu.') else ''
                if other in parts and (parts.index(other) > parts.index(part) or {other, part} == {'ranking', 'algorithms'}):
                    wrong.append(f'{path.relative_to(root)} imports {name}')
    assert wrong == []
