"Helpers that several test files use: the command in a shell, here and in a fork; the files of a run; a browser."
import hashlib, multiprocessing, os, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path

import pandas as pd, pytest, torch
from rsu.__main__ import main as entry_point
from rsu.app.cli import main
from rsu.core.data import Samples, loaders
from rsu.core.store import read_shard

# The settings of most runs in the tests: seconds of training, and yet every part of the job is carried out.
small = '--data digits --n 300 --forget random:12 --groups 2 --references 4 --oracles 2 --train-epochs 2'.split()
rsu = Path(sys.executable).parent/'rsu'

def shell(*args, cwd, command=(rsu,), **kwargs):
    "The command in a shell, as a user gives it"
    return subprocess.run([*command, *args], cwd=cwd, capture_output=True, text=True, timeout=300, **kwargs,
                          encoding='utf-8')

def call(*args):
    "The command in this process, which saves the seconds of importing torch; returns its exit code"
    try: main([*map(str, args)])
    except SystemExit as e: return e.code
    return 0

def forked(function, *args, cwd, log='log.txt'):
    "Call a function in a forked process, which need not import torch again; what it prints goes to the file `log`"
    def work():
        os.chdir(cwd)
        sys.stdout = sys.stderr = open(log, 'w', encoding='utf-8', buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler) # which shells ignore in background jobs
        torch.set_num_threads(1) # threads do not survive a fork
        sys.exit(function(*args))
    process = multiprocessing.get_context('fork').Process(target=work)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning) # newer Python warns of any fork beside threads
        process.start()
    return process

def start(*args, **kwargs):
    "Start the command in a forked process"
    return forked(entry_point, [*map(str, args)], **kwargs)

def ended(process):
    "The exit code of a forked process, once it has ended"
    process.join(120)
    assert process.exitcode is not None, 'the process did not end'
    return process.exitcode

def wait_until(condition, process):
    "Wait until a condition holds while a process, forked or of `subprocess`, is running"
    is_running = process.is_alive if hasattr(process, 'is_alive') else lambda: process.poll() is None
    limit = time.monotonic() + 120
    while not condition():
        assert is_running(), 'the process ended before the condition held'
        assert time.monotonic() < limit, 'the condition did not hold within two minutes'
        time.sleep(.002)

def state(folder):
    "Time of writing and checksum of each file below a folder"
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
            for p in sorted(Path(folder).rglob('*')) if p.is_file()}

def timeless(table):
    "A table without its columns of time and memory, which differ between equal runs"
    return table[[c for c in table if not c.startswith(('seconds', 'ratio', 'memory'))]]

def results(out):
    "The results of a run that are the same whenever it is repeated: tables without times, and weights"
    tables = {k: timeless(pd.read_parquet(out/f'{k}.parquet')) for k in ('ranking', 'stages', 'runs', 'table')}
    tables['runs'] = tables['runs'].assign(draws=[{k: v.tobytes() for k, v in o.items()} for o in tables['runs'].draws])
    return tables, read_shard(out/'unlearned.safetensors')[0]

def assert_same(a, b):
    "Two runs have the same results, with weights equal bit for bit"
    (tables, weights), (tables_b, weights_b) = results(a), results(b)
    for k in tables: pd.testing.assert_frame_equal(tables[k], tables_b[k], check_exact=True)
    assert weights.keys() == weights_b.keys()
    for k in weights: assert weights[k].numpy().tobytes() == weights_b[k].numpy().tobytes(), k

def request(*names, file='erase.csv'):
    "The options of a request for these ids, which are written to a file"
    pd.DataFrame({'id': names}).to_csv(file, index=False)
    return ['--forget', file]

def people(ids):
    "Loaders whose training set has the columns `who` and `person`, which repeat the given ids"
    def part(n): return torch.randn(n, 4), torch.arange(n) % 2
    frame = pd.DataFrame({'who': (ids*30)[:30]}).assign(person=lambda o: o.who)
    return loaders(Samples(*part(30), frame=frame), Samples(*part(10)), Samples(*part(10)))

chromium = os.environ.get('CHROMIUM') or shutil.which('chromium')
in_browser = pytest.mark.skipif(not chromium, reason='no Chromium here: install it, or name it in CHROMIUM')

def open_browser(playwright):
    "Chromium without a window and without requests of its own"
    return playwright.chromium.launch(executable_path=chromium, args=[
        '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
        '--disable-component-update', '--disable-sync'])
