"A run that is killed, started again, and killed again ends as one that was left alone."
import json, shutil, subprocess, time

import pytest
from common import assert_same, rsu, small, state
from rsu.core.store import key_of, read_json, write_json

def start(cwd):
    "The command, going on while the test looks at its folder."
    return subprocess.Popen([rsu, 'run', *small, '--out', 'out'], cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8')

def kill_when(seen, cwd):
    "Start the command and kill it as soon as `seen` holds; what it had written then."
    run, limit = start(cwd), time.monotonic() + 120
    try:
        while not seen():
            assert run.poll() is None, f'it ended before it could be killed:\n{run.stdout.read()}'
            assert time.monotonic() < limit, 'what should be seen never came'
            time.sleep(.002)
    finally:
        run.kill()
        run.communicate()
    return state(cwd/'out')

def complete(files):
    "Of a folder's files those that a restart must not make again."
    return {k: v for k, v in files.items() if k.endswith('.safetensors') and k not in ('unlearned.safetensors', 'stages.safetensors')}

def test_killed_at_every_stage(whole, tmp_path):
    # one run, killed five times: each start takes up what the last one left
    out = tmp_path/'out'
    moments = [lambda: (out/'model.safetensors').exists(), lambda: (out/'bank'/'reference-0-0000.safetensors').exists(), lambda: (out/'stages.safetensors').exists(),
               lambda: list((out/'oracles').glob('oracle-*-0000.safetensors')),
               lambda: ((out/'table.parquet').exists()
                        and 'how' in json.loads((out/'run.json').read_text(encoding='utf-8')))]
    before = {}
    for i, seen in enumerate(moments):
        files = kill_when(seen, tmp_path)
        assert {k: files.get(k) for k in before} == before, f'what was complete was made again after start {i}'
        assert not (out/'report.html').exists()
        assert json.loads((out/'run.json').read_text(encoding='utf-8'))['done'] is False
        before = complete(files)
        # what is left of files that were being written when the process died, this one's and an earlier one's
        for name in ('run.part', f'model.safetensors.{i}.part', f'bank/reference-0-0003.safetensors.{i}.part', f'oracles/oracle-0001.safetensors.{i}.part'):
            (out/name).parent.mkdir(exist_ok=True)
            (out/name).write_bytes(b'half a file')
    assert len(before) == 1 + (4+1) + 2  # the model, the references and their labels, the oracles
    run = start(tmp_path)
    said = run.communicate(timeout=120)[0]
    assert run.returncode == 0, said
    assert complete(state(out)) == before
    assert json.loads((out/'run.json').read_text(encoding='utf-8'))['done'] is True and (out/'report.html').exists()
    assert_same(out, whole.out)

@pytest.fixture
def unfinished(whole, here, no_report):
    "The finished run, as it would be had it been killed before the report; and the command that takes it up in this process."
    shutil.copytree(whole.out, here/'out')
    for p in (here/'out').glob('report.*'): p.unlink()
    note = here/'out'/'run.json'
    facts = read_json(note)
    write_json(note, {**facts, 'done': False}, 'run', key_of(settings=facts['settings'], request=facts['request']))
    return here/'out', lambda: no_report(*small, '--out', 'out')

def halve(path): path.write_bytes(path.read_bytes()[:path.stat().st_size//2])

def flip(path):
    "One bit of the last tensor: the file can be read, and holds something else."
    b = bytearray(path.read_bytes())
    b[-5] ^= 1
    path.write_bytes(b)

def empty(path): path.write_bytes(b'')

@pytest.mark.parametrize('damage', [halve, flip, empty])
def test_damaged_shards_are_named_and_made_again(damage, unfinished, whole, capsys):
    out, again = unfinished
    bad = ['bank/reference-0-0001.safetensors', next((out/'oracles').glob('oracle-*-0000.safetensors')).relative_to(out).as_posix()]
    for k in bad: damage(out/k)
    before = complete(state(out))
    assert again() == 0
    said = capsys.readouterr().out
    after = complete(state(out))
    assert [k for k in before if before[k] != after[k]] == bad
    for k in bad: assert f"out/{k}' " in said and said.count('trained again') == 2
    assert_same(out, whole.out)

@pytest.mark.parametrize('damage', [halve, flip, empty])
def test_a_damaged_model_is_named(damage, unfinished, whole, capsys):
    # made again, or refused in a sentence: never taken for sound
    out, again = unfinished
    damage(out/'model.safetensors')
    code, said = again(), ''.join(capsys.readouterr())
    assert 'out/model.safetensors' in said
    if code == 0: assert_same(out, whole.out)
    else: assert code == 2

@pytest.mark.parametrize('name', ['run.json', 'bank/bank.json'])
def test_a_note_cut_short(name, unfinished, whole, capsys):
    # a kill between opening a file and writing it leaves it empty
    out, again = unfinished
    empty(out/name)
    code = again()
    if code == 0: assert_same(out, whole.out)
    else: assert code == 2 and name in capsys.readouterr().err

def test_a_run_whose_tables_are_lost_is_not_taken_for_done(whole, here, no_report):
    shutil.copytree(whole.out, here/'out')
    for k in ('table', 'stages', 'ranking'): (here/'out'/f'{k}.parquet').unlink()
    assert no_report(*small, '--out', 'out') == 0
    assert_same(here/'out', whole.out)
