"The package as a whole: imports print nothing, every name is documented, and modules depend on each other one way."
import ast, importlib, importlib.util, inspect, pkgutil, subprocess, sys
from pathlib import Path

import pytest
import rsu
from fastcore.docments import docments

root = Path(__file__).parent.parent
found = {o.name.removeprefix('rsu.'): o.ispkg for o in pkgutil.walk_packages(rsu.__path__, 'rsu.')}
packages = sorted(k for k, whole in found.items() if whole)
modules = sorted(k for k, whole in found.items() if not whole and k not in ('_modidx', '__main__'))

def public(module):
    module = importlib.import_module(f'rsu.{module}')
    return {k: getattr(module, k) for k in module.__all__}

def own(module):
    return {k: o for k, o in public(module).items()
            if callable(o) and getattr(o, '__module__', None) == f'rsu.{module}'}

def with_arguments(module):
    """Name and definitions of each function, method and dataclass of a module.
    Beside a method come those of its base classes that it overrides, which may hold its documentation."""
    for k, o in own(module).items():
        if inspect.isclass(o): yield from parts_of_class(k, o)
        else: yield k, [o]

def parts_of_class(k, cls):
    "The fields of a dataclass, and public methods; docments cannot read named tuples"
    is_value = hasattr(cls, '__dataclass_fields__')
    if is_value: yield k, [c for c in cls.__mro__ if hasattr(c, '__dataclass_fields__')]
    if hasattr(cls, '_fields'): return
    for name in vars(cls):
        if name[0] == '_' and (name != '__init__' or is_value): continue
        found = [vars(c)[name] for c in cls.__mro__ if c.__module__.startswith('rsu.') and name in vars(c)]
        definitions = [getattr(f, '__func__', f) for f in found if f is not None]
        if definitions and inspect.isfunction(definitions[0]): yield f'{k}.{name}', definitions

def test_imports_print_and_warn_nothing():
    # the beginnings of warnings of torch and fastai about themselves, as in pyproject.toml: -W takes no pattern
    known = ["`torch.jit.script` is deprecated:FutureWarning", "The 'mode.chained_assignment' option is deprecated"]
    ignored = [a for o in known for a in ('-W', f'ignore:{o}')]
    code = '; '.join(f'import rsu.{o}' for o in modules)
    done = subprocess.run([sys.executable, '-W', 'error', *ignored, '-c', code],
                          capture_output=True, text=True, encoding='utf-8')
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')

def imported(statements, packages):
    "Those of the packages that a new process has imported after the statements"
    code = f'import sys; {statements}; print([o for o in {packages} if o in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)

def test_plotting_packages_are_imported_late():
    # matplotlib is always there, since fastai imports it
    modules_without_plots = [o for o in modules if o not in ('app.plot', 'all')]
    assert imported('; '.join(f'import rsu.{o}' for o in modules_without_plots), ['seaborn']) == []

def test_no_package_of_an_extra_is_imported_with_rsu():
    packages = 'nbformat nbclient nbconvert ipykernel IPython optuna mnist1d dask submitit nbdev execnb'.split()
    assert imported('; '.join(f'import rsu.{o}' for o in modules) + '; from rsu.all import *', packages) == []

@pytest.mark.parametrize('package', packages)
def test_every_package_has_a_docstring(package):
    assert importlib.import_module(f'rsu.{package}').__doc__

@pytest.mark.parametrize('module', modules)
def test_every_name_has_a_docstring(module):
    assert importlib.import_module(f'rsu.{module}').__doc__
    # an inherited docstring does not count
    lacking = [k for k, o in public(module).items()
               if callable(o) and not (vars(o).get('__doc__') if inspect.isclass(o) else o.__doc__)]
    assert lacking == []

@pytest.mark.parametrize('module', modules)
def test_every_parameter_is_documented(module):
    lacking = []
    for k, definitions in with_arguments(module):
        first = definitions[0]
        documented = {name for f in definitions for name, doc in docments(f, full=True).items() if doc.docment}
        fields = getattr(first, '__dataclass_fields__', {})
        documented |= {name for name, f in fields.items() if f.metadata.get('help')}
        names = [n for n, p in inspect.signature(first).parameters.items()
                 if n not in ('self', 'cls') and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        lacking += [f'{k}({n})' for n in names if n not in documented]
    assert not lacking, '\n'.join(lacking)

def test_no_name_replaces_one_of_python_or_fastai():
    # `from rsu.all import *` must not replace a name of Python or of fastai's star imports
    import builtins
    from fastai import basics
    from rsu import all as every
    assert [o for o in every.__all__ if hasattr(builtins, o)] == []
    theirs = {o for o in vars(basics) if o[0] != '_'}
    assert sorted(theirs & set(every.__all__)) == []

def test_no_name_is_exported_by_two_modules():
    offered = {}
    for m in modules:
        for k in importlib.import_module(f'rsu.{m}').__all__:
            if m != 'all': offered.setdefault(k, []).append(m)
    assert {k: v for k, v in offered.items() if len(v) > 1} == {}

# In a process that has made no PyTorch optimiser, as with a model that was trained elsewhere
measured = """
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
def report(name): print(name, len(loaded) > 1, sorted(loaded[-1]-loaded[0]))
"""
each = measured + """
for name, how in algorithms().items():
    one = how()
    loaded.clear()
    try: learn.unlearn(split, one.replace(n_epoch=2) if (one.n_epoch or 0) > 2 else one, quiet=True)
    except InputError: continue # no recipe, no shards
    report(name)
"""
together = measured + """
list(rsu.algorithms.many._run_together(learn, [Job(split, FineTune(n_epoch=1), 0)], [FineTune(n_epoch=1)], 1))
report('side by side')
"""

@pytest.mark.parametrize('code, n', [(each, 18), (together, 1)], ids=['each', 'together'])
def test_measured_times_exclude_late_imports_of_pytorch(code, n, tmp_path):
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          encoding='utf-8')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= n and [o for o in lines if not o.endswith('True []')] == []

slow = {'torch', 'fastai', 'numpy', 'pandas', 'scipy', 'sklearn', 'matplotlib', 'optuna'}
at_once = """
import sys, time
from rsu.__main__ import main
code = 0
try: main({args!r})
except SystemExit as e: code = e.code or 0
print(code, *sorted({slow!r} & set(sys.modules)), time.process_time() < .5)
"""

@pytest.mark.parametrize('line, exit_code, words', [
    ('--help', 0, 'rsu COMMAND --help'), ('', 0, 'rsu COMMAND --help'), ('--version', 0, 'rsu '),
    ('run --help', 0, 'rmia, attackr'), ('forget --help', 0, 'neggradplus'),
    ('run --ranker LyRa --out x', 2, "did you mean 'lira'"), ('run --seeds 3 --out x', 2, 'unrecognized arguments'),
    ('run --ranker lyra --out x', 2, "did you mean 'lira'"), ('run --data digit --out x', 2, "did you mean 'digits'"),
    ('run --network resnet --out x', 2, "did you mean 'cifar_resnet18'"),
    ('tune --algorithm scrub,scrap --out x', 2, "did you mean 'scrub'"),
    ('run --repair scrap --out x', 2, "did you mean 'scrub'"),
    ('forget --data m:f --weights w --forget i.csv --rerank lyra --out x', 2, "did you mean 'lira'")])
def test_help_and_misspelt_names_do_not_import_pytorch(line, exit_code, words, tmp_path):
    code = at_once.format(args=line.split(), slow=slow)
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, timeout=60,
                          capture_output=True, text=True, encoding='utf-8')
    assert done.stdout.splitlines()[-1] == f'{exit_code} True', done.stderr
    assert words.lower() in (done.stdout + done.stderr).lower()
    assert not list(tmp_path.iterdir())

def ours(table, *modules): return {k: o for k, o in table.items() if o.__module__.startswith(modules or 'rsu.')}

def test_the_name_table_lists_everything_defined():
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
                if other not in parts: continue
                if parts.index(other) > parts.index(part) or {other, part} == {'ranking', 'algorithms'}:
                    wrong.append(f'{path.relative_to(root)} imports {name}')
    assert wrong == []
