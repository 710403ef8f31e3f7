"A command stopped by Ctrl-C or a service manager tells how to continue, and the same command then continues."
import os, signal, subprocess, time

import pytest
from common import rsu
from test_forget import ask, clinic, here, request # noqa: F401 (fixtures)

def stop_when(seen, command, signum, cwd, **env):
    "Start a command, send it a signal once the file `seen` is there; its exit code and what it wrote to stderr."
    heeds = lambda: signal.signal(signal.SIGINT, signal.default_int_handler) # which shells have jobs in the background ignore
    run = subprocess.Popen(command, cwd=cwd, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, encoding='utf-8', preexec_fn=heeds)
    limit = time.monotonic() + 120
    while not seen.exists():
        assert run.poll() is None and time.monotonic() < limit, run.communicate()
        time.sleep(.01)
    run.send_signal(signum)
    return run.communicate(timeout=60)[1].strip(), run.returncode

said = 'rsu: stopped; repeat the command to resume.'
codes = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]

@pytest.mark.parametrize('signum, code', codes)
def test_during_the_imports(signum, code, tmp_path):
    slow = "import time\nopen({!r}, 'w').close()\ntry: time.sleep(60)\nexcept BaseException: pass # as some libraries do\n"
    (tmp_path/'torch.py').write_text(slow.format(str(tmp_path/'begun')), encoding='utf-8')
    assert stop_when(tmp_path/'begun', [rsu, 'run', '--out', 'out'], signum, tmp_path, PYTHONPATH=str(tmp_path)) == (said, code)

def test_during_the_report(here): # noqa: F811 (the fixture)
    # the kernel reads this as it starts: its first cell sleeps, so that the signal comes while it runs
    begun, start = here/'begun', here/'ipython'/'profile_default'/'startup'
    start.mkdir(parents=True)
    (start/'slow.py').write_text(f'''
import os, time
def sleep(info):
    with open("{begun}.part", "w") as f: f.write(str(os.getpid()))
    os.replace("{begun}.part", "{begun}")
    time.sleep(60)
get_ipython().events.register("pre_run_cell", sleep)
''', encoding='utf-8')
    command = [rsu, *ask, *request('patient-3'), '--out', 'out']
    for signum, code in codes:
        assert stop_when(begun, command, signum, here, IPYTHONDIR=str(here/'ipython')) == (said, code)
        kernel = int(begun.read_text(encoding='utf-8'))
        with pytest.raises(ProcessLookupError): os.kill(kernel, 0)
        assert not list((here/'out').glob('*.html'))
        begun.unlink()
    again = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300, encoding='utf-8')
    assert again.returncode == 0 and len(list((here/'out').glob('*.html'))) == 1, again.stderr
