"A run that is killed and started again, several times, gives the same results as an uninterrupted run."
import json, shutil, time

import pytest
from common import assert_same, before_its_report, small, start, state, wait_until

def kill_when(condition, cwd):
    "Start the command and kill it as soon as a condition holds; returns the state of its folder then"
    run = start('run', *small, '--out', 'out', cwd=cwd)
    try: wait_until(condition, run)
    finally:
        run.kill()
        run.join()
    return state(cwd/'out')

def complete(files):
    "Those of a folder's files that a restart must not make again"
    return {k: v for k, v in files.items()
            if k.endswith('.safetensors') and k not in ('unlearned.safetensors', 'stages.safetensors')}

def test_a_run_killed_at_every_stage_gives_the_same_results(whole, here, no_report, monkeypatch):
    # one run, killed five times: each start continues from what the last one left
    out = here/'out'
    moments = [(out/'model.safetensors').exists, (out/'bank'/'reference-0-0000.safetensors').exists,
               (out/'stages.safetensors').exists, lambda: list((out/'oracles').glob('oracle-*-0000.safetensors')),
               (here/'report started').exists]
    def never_ending_report(out, **kwargs):
        (here/'report started').touch()
        time.sleep(600)
    before = {}
    for i, moment in enumerate(moments):
        with monkeypatch.context() as m:
            m.setattr('rsu.app.pipeline.write_report', never_ending_report)
            files = kill_when(moment, here)
        assert {k: files.get(k) for k in before} == before, f'what was complete was made again after start {i}'
        assert not (out/'report.html').exists()
        assert json.loads((out/'run.json').read_text(encoding='utf-8'))['done'] is False
        before = complete(files)
        # files that were being written when this process or an earlier one died
        for name in ('run.part', f'model.safetensors.{i}.part', f'bank/reference-0-0003.safetensors.{i}.part',
                     f'oracles/oracle-0001.safetensors.{i}.part'):
            (out/name).parent.mkdir(exist_ok=True)
            (out/name).write_bytes(b'half a file')
    assert len(before) == 1 + (4+1) + 2  # the model, the references and their labels, the oracles
    assert no_report(*small, '--out', 'out') == 0
    assert complete(state(out)) == before
    assert json.loads((out/'run.json').read_text(encoding='utf-8'))['done'] is True and (out/'report.html').exists()
    assert_same(out, whole.out)

@pytest.fixture
def unfinished(whole, here, no_report):
    "The folder of a run that was killed before its report, and a function that continues it in this process"
    return before_its_report(whole.out, here/'out'), lambda: no_report(*small, '--out', 'out')

def halve(path): path.write_bytes(path.read_bytes()[:path.stat().st_size//2])

def flip(path):
    "Change one bit of the last tensor: the file can be read, with another content"
    b = bytearray(path.read_bytes())
    b[-5] ^= 1
    path.write_bytes(b)

def empty(path): path.write_bytes(b'')

@pytest.mark.parametrize('damage', [halve, flip, empty])
def test_damaged_shards_are_reported_and_made_again(damage, unfinished, whole, capsys):
    out, again = unfinished
    oracle = next((out/'oracles').glob('oracle-*-0000.safetensors'))
    bad = ['bank/reference-0-0001.safetensors', oracle.relative_to(out).as_posix()]
    for k in bad: damage(out/k)
    before = complete(state(out))
    assert again() == 0
    printed = capsys.readouterr().out
    after = complete(state(out))
    assert [k for k in before if before[k] != after[k]] == bad
    for k in bad: assert f"out/{k}' " in printed and printed.count('trained again') == 2
    assert_same(out, whole.out)

@pytest.mark.parametrize('damage', [halve, flip, empty])
def test_a_damaged_model_is_reported_and_not_used(damage, unfinished, whole, capsys):
    # it is made again or refused in a sentence, and never used
    out, again = unfinished
    damage(out/'model.safetensors')
    code, printed = again(), ''.join(capsys.readouterr())
    assert 'out/model.safetensors' in printed
    if code == 0: assert_same(out, whole.out)
    else: assert code == 2

@pytest.mark.parametrize('name', ['run.json', 'bank/bank.json'])
def test_an_empty_json_file_is_made_again_or_refused(name, unfinished, whole, capsys):
    # as after a kill between opening a file and writing it
    out, again = unfinished
    empty(out/name)
    code = again()
    if code == 0: assert_same(out, whole.out)
    else: assert code == 2 and name in capsys.readouterr().err

def test_a_run_without_its_tables_is_not_finished(whole, here, no_report):
    shutil.copytree(whole.out, here/'out')
    for k in ('table', 'stages', 'ranking'): (here/'out'/f'{k}.parquet').unlink()
    assert no_report(*small, '--out', 'out') == 0
    assert_same(here/'out', whole.out)
