"What several files of tests share: the command, from a shell and in this process, what a run left in its folder, and a browser."
import hashlib, os, shutil, subprocess, sys
from pathlib import Path

import pandas as pd, pytest, torch
from rsu.app.cli import main
from rsu.core.data import Samples, loaders
from rsu.core.store import read_shard

# The settings of every run here: seconds of training, and yet each part of the job has its turn.
small = '--data digits --n 300 --forget random:12 --groups 2 --references 4 --oracles 2 --train-epochs 2'.split()
rsu = Path(sys.executable).parent/'rsu'

def shell(*args, cwd, command=(rsu,), **kwargs):
    "A command as a user gives it."
    return subprocess.run([*command, *args], cwd=cwd, capture_output=True, text=True, timeout=300, **kwargs,
                          encoding='utf-8')

def call(*args):
    "The command in this process, which saves the seconds of importing torch; its exit code."
    try: main([*map(str, args)])
    except SystemExit as e: return e.code
    return 0

def state(folder):
    "When each file below a folder was written, and what it holds."
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
            for p in sorted(Path(folder).rglob('*')) if p.is_file()}

def timeless(table):
    "Without what the clock says, and the memory, which hangs on what the process did before."
    return table[[c for c in table if not c.startswith(('seconds', 'ratio', 'memory'))]]

def results(out):
    "What must be the same whenever a run is repeated: all but the clock's part."
    tables = {k: timeless(pd.read_parquet(out/f'{k}.parquet')) for k in ('ranking', 'stages', 'runs', 'table')}
    tables['runs'] = tables['runs'].assign(draws=[{k: v.tobytes() for k, v in o.items()} for o in tables['runs'].draws])
    return tables, read_shard(out/'unlearned.safetensors')[0]

def assert_same(a, b):
    "The same results, weights bit for bit."
    (tables, weights), (tables_b, weights_b) = results(a), results(b)
    for k in tables: pd.testing.assert_frame_equal(tables[k], tables_b[k], check_exact=True)
    assert weights.keys() == weights_b.keys()
    for k in weights: assert weights[k].numpy().tobytes() == weights_b[k].numpy().tobytes(), k

def request(*names, file='erase.csv'):
    "Options that request these ids, which are written to a file."
    pd.DataFrame({'id': names}).to_csv(file, index=False)
    return ['--forget', file]

def people(ids):
    "Loaders whose training set has a column `who`, and the same as `person`: the given ids, again and again."
    part = lambda n: (torch.randn(n, 4), torch.arange(n) % 2)
    frame = pd.DataFrame({'who': (ids*30)[:30]}).assign(person=lambda o: o.who)
    return loaders(Samples(*part(30), frame=frame), Samples(*part(10)), Samples(*part(10)))

chromium = os.environ.get('CHROMIUM') or shutil.which('chromium')
in_browser = pytest.mark.skipif(not chromium, reason='no Chromium here: install it, or name it in CHROMIUM')

def open_browser(playwright):
    "Chromium, without a window and without calls of its own to its makers."
    return playwright.chromium.launch(executable_path=chromium, args=[
        '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
        '--disable-component-update', '--disable-sync'])
