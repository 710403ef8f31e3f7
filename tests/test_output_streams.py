"Output to a pipe has plain lines without progress bars, and the command ends when the reader of the pipe does."
import os, subprocess, sys

import pytest
from common import rsu, small

@pytest.mark.parametrize('job, both', [(['run', '--help'], False), (['run', *small, '--out', 'out'], False),
                                       (['run', '--data', 'no', '--out', 'out'], True)],
                         ids=['help', 'run', 'refusal, with stderr'])
def test_the_command_ends_with_the_reader_of_its_pipe(job, both, tmp_path):
    # unbuffered, so that the first line of a run ends it; argparse ignores errors while it prints the help
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'}
    if '--help' not in job: env['PYTHONUNBUFFERED'] = '1'
    read, write = os.pipe()
    os.close(read)
    with open(tmp_path/'errors', 'w+', encoding='utf-8') as errors:
        done = subprocess.run([rsu, *job], cwd=tmp_path, env=env, stdout=write, stderr=write if both else errors,
                              timeout=300)
        os.close(write)
        errors.seek(0)
        assert (done.returncode, errors.read()) == (141, '')

def test_a_log_has_plain_lines(whole):
    assert '\r' not in whole.done.stdout
    lines = whole.done.stdout.splitlines()
    for start in ('1/5 ', '2 epochs: train_loss ', '2/5 ', 'Reference models to train: 4', '3/5 ', '4/5 ',
                  'Oracles to train: 2', '5/5 '):
        assert any(o.startswith(start) for o in lines), start
    assert len(lines) < 30

script = """
from rsu.core.datasets import digits
from rsu.core.recipe import Recipe, progress, small_cnn
Recipe(small_cnn, n_epoch=2).fit(digits(n=100))
list(progress(range(7), 'Jobs'))
"""

@pytest.mark.parametrize('terminal', [True, False], ids=['terminal', 'pipe'])
def test_progress_bars_are_drawn_only_on_a_terminal(terminal):
    read, write = os.openpty() if terminal else os.pipe()
    with subprocess.Popen([sys.executable, '-c', script], stdout=write) as job:
        os.close(write)
        shown = b''
        try:
            while part := os.read(read, 65536): shown += part
        except OSError: pass # which Linux raises at the end of a terminal's output
    os.close(read)
    assert job.returncode == 0
    assert (b'[7/7' in shown, b'|' in shown, b'\nJobs: 7' in shown) == (terminal, terminal, not terminal), shown
