"A reader that goes away, as `head` does, ends the command without a traceback."
import os, subprocess

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
