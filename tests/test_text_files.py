"Text files are read and written as UTF-8 on every machine: each call that opens one names the encoding."
import ast, json, re
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

root = Path(__file__).resolve().parent.parent

def sources(path):
    "The code of a file, or of the cells of a notebook."
    text = path.read_text(encoding='utf-8')
    if path.suffix != '.ipynb': return [text]
    cells = [''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'code']
    return [TransformerManager().transform_cell(o) for o in cells]

def opens_text(call):
    "Does a call open a text file, or read what a process prints as text?"
    name = getattr(call.func, 'attr', getattr(call.func, 'id', ''))
    words = {k.arg: getattr(k.value, 'value', None) for k in call.keywords}
    if name in ('read_text', 'write_text'): return True
    if name in ('run', 'Popen', 'check_output'): return bool(words.get('text') or words.get('universal_newlines'))
    if name not in ('open', 'fdopen', 'NamedTemporaryFile', 'TemporaryFile'): return False
    modes = [o for o in (*(getattr(a, 'value', None) for a in call.args), words.get('mode')) if isinstance(o, str)]
    modes = [o for o in modes if re.fullmatch(r'[rwax]\+?[bt]?\+?', o)]
    if isinstance(call.func, ast.Name) and name == 'open': return not any('b' in o for o in modes) # the built-in one
    return any('b' not in o for o in modes) # a method: only with the mode of a text file

def unencoded(source):
    "The calls in a source text that open a text file without naming its encoding"
    calls = [o for o in ast.walk(ast.parse(source)) if isinstance(o, ast.Call)]
    return [o for o in calls if opens_text(o) and 'encoding' not in {k.arg for k in o.keywords}]

folders = ['rsu', '.ci', 'tests', 'nbs']
files = sorted(o for k in folders for o in (root/k).rglob('*')
               if o.suffix in ('.py', '.ipynb') and '.ipynb_checkpoints' not in o.parts)

@pytest.mark.parametrize('path', [*files, root/'setup.py'], ids=lambda o: o.relative_to(root).as_posix())
def test_every_call_that_opens_text_names_the_encoding(path):
    found = [ast.unparse(o) for source in sources(path) for o in unencoded(source)]
    assert found == [], "add encoding='utf-8'"

@pytest.mark.parametrize('source, n', [
    ("open('a')", 1), ("open('a', 'w')", 1), ("open('a', mode='r+')", 1), ("open('a', 'rb')", 0),
    ("open('a', encoding='utf-8')", 0),
    ("p.read_text()", 1), ("p.write_text('x')", 1), ("p.write_text('x', encoding='utf-8')", 0),
    ("p.open('w')", 1), ("p.open('wb')", 0),
    ("ReferenceBank.open(path)", 0), ("os.fdopen(f, 'w')", 1), ("os.open('file', flags)", 0),
    ("subprocess.run(a, text=True)", 1),
    ("subprocess.run(a)", 0), ("subprocess.Popen(a, text=True, encoding='utf-8')", 0)])
def test_the_check_finds_calls_without_encoding(source, n): assert len(unencoded(source)) == n
