"Output that goes to a pipe: a log has plain lines, and a reader that goes away, as `head` does, ends the command."
import os, subprocess, sys

import pytest
from common import rsu, small

@pytest.mark.parametrize('job, both', [(['run', '--help'], False), (['run', *small, '--out', 'out'], False),
                                       (['run', '--data', 'no', '--out', 'out'], True)],
                         ids=['help', 'run', 'refusal, with stderr'])
def test_a_reader_that_has_gone(job, both, tmp_path):
    # a run writes its lines at once here, so that the first ends it; argparse passes over errors while it prints
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'}
    if '--help' not in job: env['PYTHONUNBUFFERED'] = '1'
    read, write = os.pipe()
    os.close(read)
    with open(tmp_path/'said', 'w+', encoding='utf-8') as said:
        done = subprocess.run([rsu, *job], cwd=tmp_path, env=env, stdout=write, stderr=write if both else said,
                              timeout=300)
        os.close(write)
        said.seek(0)
        assert (done.returncode, said.read()) == (141, '')

def test_a_log_has_plain_lines(whole):
    assert '\r' not in whole.done.stdout
    lines = whole.done.stdout.splitlines()
    for start in ('1/5 ', '2 epochs: train_loss ', '2/5 ', 'Reference models to train: 4', '3/5 ', '4/5 ',
                  'Oracles to train: 2', '5/5 '):
        assert any(o.startswith(start) for o in lines), start
    assert len(lines) < 30

watched = """
from rsu.core.datasets import digits
from rsu.core.recipe import Recipe, progress, small_cnn
Recipe(small_cnn, n_epoch=2).fit(digits(n=100))
list(progress(range(7), 'Jobs'))
"""

@pytest.mark.parametrize('terminal', [True, False], ids=['terminal', 'pipe'])
def test_bars_are_drawn_on_a_terminal_alone(terminal):
    read, write = os.openpty() if terminal else os.pipe()
    with subprocess.Popen([sys.executable, '-c', watched], stdout=write) as job:
        os.close(write)
        shown = b''
        try:
            while part := os.read(read, 65536): shown += part
        except OSError: pass # how Linux ends the output of a terminal that nobody writes to
    os.close(read)
    assert job.returncode == 0
    assert (b'[7/7' in shown, b'|' in shown, b'\nJobs: 7' in shown) == (terminal, terminal, not terminal), shown
