"A command stopped by Ctrl-C or a service manager tells how to continue, and the same command then continues."
import os, signal, subprocess

import pytest
from common import clinic_request, request, rsu, wait_until

def stop_when(file, command, signum, cwd, **env):
    "Start a command and send it a signal once a file exists; returns what it wrote to stderr, and its exit code"
    def accept_sigint(): signal.signal(signal.SIGINT, signal.default_int_handler) # which background jobs ignore
    run = subprocess.Popen(command, cwd=cwd, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, encoding='utf-8', preexec_fn=accept_sigint)
    wait_until(file.exists, run)
    run.send_signal(signum)
    return run.communicate(timeout=60)[1].strip(), run.returncode

message = 'rsu: stopped; repeat the command to resume.'
codes = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]

@pytest.mark.parametrize('signum, code', codes)
def test_a_signal_during_the_imports(signum, code, tmp_path):
    started = tmp_path/'started'
    slow = f'import time\nopen({str(started)!r}, "w").close()\n'
    slow += 'try: time.sleep(60)\nexcept BaseException: pass # as some libraries do\n'
    (tmp_path/'torch.py').write_text(slow, encoding='utf-8')
    command = [rsu, 'run', '--out', 'out']
    assert stop_when(started, command, signum, tmp_path, PYTHONPATH=str(tmp_path)) == (message, code)

def test_a_signal_during_the_report(in_clinic):
    # the kernel runs this file when it starts: each cell sleeps first, so that the signal comes while one runs
    here = in_clinic
    started, start = here/'started', here/'ipython'/'profile_default'/'startup'
    start.mkdir(parents=True)
    (start/'slow.py').write_text(f'''
import os, time
def sleep(info):
    with open("{started}.part", "w") as f: f.write(str(os.getpid()))
    os.replace("{started}.part", "{started}")
    time.sleep(60)
get_ipython().events.register("pre_run_cell", sleep)
''', encoding='utf-8')
    command = [rsu, *clinic_request, *request('patient-3'), '--out', 'out']
    for signum, code in codes:
        assert stop_when(started, command, signum, here, IPYTHONDIR=str(here/'ipython')) == (message, code)
        kernel = int(started.read_text(encoding='utf-8'))
        with pytest.raises(ProcessLookupError): os.kill(kernel, 0)
        assert not list((here/'out').glob('*.html'))
        started.unlink()
    again = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300, encoding='utf-8')
    assert again.returncode == 0 and len(list((here/'out').glob('*.html'))) == 1, again.stderr
