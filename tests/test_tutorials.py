"Each tutorial states its run time and what it needs, and ends with two exercises whose answers are tests."
import ast, json, re
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

tutorials = sorted((Path(__file__).parents[1]/'nbs/tutorials').glob('[0-9]*.ipynb'))

def cells_of(path):
    "Type and source of each cell"
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]

def has_assertion(source):
    "Does the code contain an assertion, or a call of a function that makes one?"
    nodes = [*ast.walk(ast.parse(TransformerManager().transform_cell(source)))]
    called = {getattr(o.func, 'id', '') for o in nodes if isinstance(o, ast.Call)}
    return any(isinstance(o, ast.Assert) for o in nodes) or any(o.startswith(('test_', 'expect_error')) for o in called)

def test_there_are_tutorials(): assert len(tutorials) >= 7

@pytest.mark.parametrize('path', tutorials, ids=lambda o: o.stem)
def test_run_time_and_requirements_come_first(path):
    (_, title), (_, second), *_ = cells_of(path)
    assert re.match(r'# .+\n\n> .+', title)
    assert re.match(r'\*\*Time:\*\* about \d+ s on two CPU cores\. \*\*Needs:\*\* \S', second)

@pytest.mark.parametrize('path', tutorials, ids=lambda o: o.stem)
def test_two_exercises_with_folded_answers_that_are_tests_come_last(path):
    cells = cells_of(path)
    starts = [i for i, (kind, s) in enumerate(cells) if kind == 'markdown' and re.search('^## Exercises', s, re.M)]
    assert len(starts) == 1
    rest = [o for o in cells[starts[0]+1:] if not o[1].startswith('#| hide')]
    assert [kind for kind, _ in rest] == ['markdown', 'code']*2
    for number, ((_, question), (_, answer)) in enumerate(zip(rest[::2], rest[1::2]), 1):
        assert question.startswith(f'**{number}.** ')
        assert answer.startswith('#| code-fold: true\n#| code-summary: Answer\n') and has_assertion(answer)
