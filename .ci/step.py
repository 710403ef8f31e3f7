"""The step check: rsu/ and README.md are what the notebooks export, and the notebooks are clean.

Prints one line for each problem.
"""
import ast, filecmp, json, os, re, shutil, sys, tempfile
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

root = Path(__file__).resolve().parent.parent

def parts(text):
    "An exported module, cell by cell: `{('nbs/00_data.ipynb', 'cell id'): code}`."
    head, *cells = text.split('\n# %% ')
    res = {('', ''): head}
    for cell in cells:
        top, _, code = cell.partition('\n')
        nb, _, cell_id = top.rpartition(' #')
        res[re.sub(r'^(\.\./)+', '', nb), cell_id] = code.rstrip()
    return res

def notebook(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def place(nb, cell_id):
    "Where a reader finds a cell: notebook, and number counted from 0."
    found = [i for i, c in enumerate(notebook(root/nb)) if c.get('id') == cell_id] if (root/nb).is_file() else []
    return f'{nb}, cell {found[0]}' if found else nb

def module_differs(name, have, want):
    "The line for a module that is not as exported: its first cell that differs."
    a, b = parts(have), parts(want)
    own = next((nb for nb, _ in b if nb.startswith('nbs/')), '')
    keys = [k for k in (*b, *a) if a.get(k) != b.get(k) and k[0].startswith('nbs/')]
    where = place(*keys[0]) if keys else own or 'the notebooks'
    return f'{name} differs from {where}: edit the notebook and run make export'

def files(folder):
    paths = (p for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts)
    return {p.relative_to(folder).as_posix() for p in paths}

def exported(fresh):
    "Is rsu/ what the notebooks export into `fresh`?"
    have, want = files(root/'rsu'), files(fresh/'rsu')
    for f in sorted(have - want): yield f'rsu/{f} comes from no notebook: delete it, or export it from one'
    for f in sorted(want - have): yield f'rsu/{f} is missing: run make export'
    for f in sorted(have & want):
        a, b = root/'rsu'/f, fresh/'rsu'/f
        if filecmp.cmp(a, b, shallow=False): continue
        if f.startswith('templates/'): yield f'rsu/{f} differs from nbs/_{f}: edit that and run make export'
        elif f == 'settings.json': yield f'rsu/{f} differs from nbs/{f}: edit that and run make export'
        elif f.endswith('_modidx.py') or f.endswith('__init__.py'): yield f'rsu/{f} is out of date: run make export'
        else: yield module_differs(f'rsu/{f}', a.read_text(encoding='utf-8'), b.read_text(encoding='utf-8'))

def readme(made):
    "Are README.md and its pictures what the index gives?"
    have = {'README.md'} | {p.relative_to(root).as_posix() for p in root.glob('nbs/images/readme_*')}
    for f in sorted(have | made.keys()):
        if f not in made or not (root/f).is_file() or (root/f).read_bytes() != made[f]:
            yield f'{f} differs from nbs/index.ipynb: edit the notebook and run make export'

def parsed(source):
    "The syntax tree of a cell, which may hold !commands and %magic"
    return ast.parse(TransformerManager().transform_cell(source))

def statements(body):
    "The statements of a cell, with those in loops, branches and `try` blocks, without those in functions and classes"
    for o in body:
        yield o
        if isinstance(o, (ast.FunctionDef, ast.ClassDef)): continue
        for part in ('body', 'orelse', 'finalbody', 'handlers'): yield from statements(getattr(o, part, []))

def prints(statement):
    "Is it a call of `print`?"
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'print'

def has_output(source):
    "Does a cell always show something: a call of `print`, or a value in its last line?"
    if re.search(r'^#\|\s*(hide|cuda)', source, re.M): return False
    body = parsed(source).body
    last = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
    shows_value = last and not isinstance(last, (ast.Call, ast.Constant)) and not source.rstrip().endswith(';')
    return bool(shows_value) or any(map(prints, statements(body)))

def source_problems(source):
    "What is wrong with the form of a code cell; ruff checks the rest"
    if re.search(r'^#\|\s*(slow|eval:\s*false)', source, re.M):
        yield 'is skipped by nbdev, and Jupyter would run it: let it skip itself by an `if`, or make it Markdown'
    if re.search(r'^#\|\s*cuda', source, re.M) and not all(isinstance(o, ast.If) for o in parsed(source).body):
        yield 'needs a GPU, and Jupyter would run it without: put it under `if torch.cuda.is_available():`'
    length = len(source.splitlines())
    if source.startswith('#| export') and length > 40:
        yield f'exports {length} lines: split it into cells of at most 40'
    for o in ast.walk(parsed(source)):
        if isinstance(o, ast.Assign) and isinstance(o.value, ast.Tuple) and isinstance(o.targets[0], ast.Tuple):
            names = len(o.targets[0].elts)
            if names > 2: yield f'assigns to {names} names at once: assign to at most two in a statement'

def output_problems(cell):
    "What is wrong with the stored outputs of a code cell"
    if not cell['outputs'] and has_output(''.join(cell['source'])): yield 'has lost its output: run the notebook again'
    for o in cell['outputs']:
        text = ''.join(o.get('text', []))
        if o.get('name') == 'stderr' and 'Warning: ' in text:
            yield 'shows a warning: import rsu before the module that gives it, or remove its cause, and run it again'
        if f'{root}/' in text or f'{tempfile.gettempdir()}/tmp' in text:
            yield 'shows a path of this machine: print the path from the working folder, and run it again'

def lost_by_title(cells):
    "The number of the title's cell if it holds more than nbdev takes from it: the title, a quoted line and options"
    first = next((i for i, c in enumerate(cells) if c['cell_type'] == 'markdown'), None)
    source = '' if first is None else ''.join(cells[first]['source'])
    lines = [o for o in source.splitlines() if o.strip() and o[:2] not in ('# ', '> ', '- ')]
    return first if lines and source.startswith('# ') else None

def notebooks(fresh):
    "Are the notebooks as nbdev cleans them, in `fresh`, and fit to be shown?"
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in p.parts: continue
        nb, cells = p.relative_to(root).as_posix(), notebook(p)
        if p.read_bytes() != (fresh/nb).read_bytes():
            bad = [i for i, (a, b) in enumerate(zip(cells, notebook(fresh/nb))) if a != b]
            yield f'{nb}{f", cell {bad[0]}" if bad else ""} is not clean: run make clean'
        for i, c in enumerate(cells):
            if c['cell_type'] == 'markdown' and '- skip_exec: true' in ''.join(c['source']).splitlines():
                yield f'{nb}, cell {i} keeps the page from the tests, and Jupyter would run it: remove skip_exec'
            if c['cell_type'] != 'code': continue
            problems = *source_problems(''.join(c['source'])), *output_problems(c)
            for problem in problems: yield f'{nb}, cell {i} {problem}'
        if (i := lost_by_title(cells)) is not None:
            yield f'{nb}, cell {i} holds more than the title and a quoted line, which the site loses: move it down'

def main():
    with tempfile.TemporaryDirectory() as tmp:
        fresh = Path(tmp)/'rsu'
        shutil.copytree(root/'nbs', fresh/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_quarto.yml'))
        shutil.copy(root/'settings.ini', fresh)
        # __init__.py is ours but for its version, which nbdev writes: it is carried along, all else is made anew.
        for p in (root/'rsu').rglob('__init__.py'):
            (fresh/p.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, fresh/p.relative_to(root))
        os.chdir(fresh)
        from nbdev.clean import nbdev_clean
        from nbdev.doclinks import nbdev_export
        from readme import render
        nbdev_export.__wrapped__()
        (fresh/'rsu/templates').mkdir(exist_ok=True)
        for p in (fresh/'nbs/_templates').glob('*.ipynb'): shutil.copy(p, fresh/'rsu/templates')
        shutil.copy(fresh/'nbs/settings.json', fresh/'rsu')
        problems = [*exported(fresh), *readme(render())]
        for path in (None, *map(str, Path('nbs/_templates').glob('*.ipynb'))): nbdev_clean.__wrapped__(path)
        problems += notebooks(fresh)
        os.chdir(root)
    link = root/'nbs/_quarto.yml'
    if not link.is_symlink() or os.readlink(link) != '../_quarto.yml':
        problems.append('nbs/_quarto.yml is not the link to ../_quarto.yml: ln -sf ../_quarto.yml nbs/_quarto.yml')
    for p in problems: print(p, file=sys.stderr)
    fine = 'rsu/ is what the notebooks export, and they are clean'
    print(f'step check: {len(problems)} to fix' if problems else f'step check: {fine}')
    return 1 if problems else 0

if __name__ == '__main__': sys.exit(main())
