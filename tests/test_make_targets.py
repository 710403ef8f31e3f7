"Targets of the Makefile that no other test runs."
import os, subprocess
from pathlib import Path

root = Path(__file__).parent.parent

def test_make_lab_opens_a_tutorial_that_exists():
    # make test runs this, too: what the outer make hands to its children changes what an inner one prints
    env = {k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS')}
    done = subprocess.run(['make', '-n', 'lab'], cwd=root, env=env, capture_output=True, encoding='utf-8', check=True)
    command = done.stdout.splitlines()[-1].split()
    assert command[:2] == ['jupyter', 'lab'] and (root/command[2]).is_file() and command[2].startswith('nbs/tutorials/')
