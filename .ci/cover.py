"""Run one API notebook under coverage: `coverage run .ci/cover.py nbs/evaluation/00_metrics.ipynb`.

A notebook defines what it exports itself and does not run the module. So the code of an exported cell is compiled under
the name of its module and at the lines that it has there.
"""
import ast, re, sys
from pathlib import Path
from execnb.shell import CaptureShell
from IPython.core.compilerop import CachingCompiler
from nbdev.config import get_config
from nbdev.test import test_nb

def exported(module):
    "The code of each cell in a module, and the number of lines before it"
    text = module.read_text(encoding='utf-8')
    starts = [m.end() + 1 for m in re.finditer(r'^# %% .*$', text, re.M)]
    for start, end in zip(starts, [*starts[1:], len(text)]):
        code = re.sub(r'\n# %% .*$', '', text[start:end].rstrip())
        yield code.strip(), text[:start].count('\n')

class ExportedLines(CachingCompiler):
    "Compiles exported cells as lines of their module"
    def __init__(self):
        super().__init__()
        self.cells = {code: (str(module), before) for module in Path('rsu').absolute().rglob('*.py')
                      for code, before in exported(module)}
        self.places = {}

    def cache(self, transformed_code, number=0, raw_code=None):
        name = super().cache(transformed_code, number, raw_code)
        if place := self.cells.get(transformed_code.strip()): self.places[name] = place
        return name

    def __call__(self, source, filename, symbol, **kwargs):
        if filename in self.places and isinstance(source, ast.AST):
            filename, before = self.places[filename]
            ast.increment_lineno(source, before)
        return super().__call__(source, filename, symbol, **kwargs)

def main(notebook):
    CaptureShell.compiler_class = ExportedLines
    passed, seconds = test_nb(Path(notebook).absolute(), basepath=get_config().config_path)
    print(f'{notebook}: {seconds:.0f} secs', flush=True)
    return 0 if passed else 1

if __name__ == '__main__': sys.exit(main(sys.argv[1]))
