"Helpers that several test files use: the command in a shell, here and in a fork; the files of a run; a browser."
import hashlib, multiprocessing, os, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from PIL import Image
from rsu.__main__ import main as entry_point
from rsu.app.cli import main
from rsu.core.data import Samples, loaders
from rsu.core.recipe import Recipe, mlp
from rsu.core.store import key_of, read_json, read_shard, write_json
from rsu.ranking.bank import ReferenceBank
from safetensors.torch import save_file
import rsu.all, rsu.app.pipeline # noqa: F401 (before any fork, so that no child imports them)

# The settings of most runs in the tests: seconds of training, and yet every part of the job is carried out.
small = '--data digits --n 300 --forget random:12 --groups 2 --references 4 --oracles 2 --train-epochs 2'.split()
rsu = Path(sys.executable).parent/'rsu'

class InterruptAt(Callback):
    "Raises KeyboardInterrupt after the batch of a step, counted from 1."
    run_valid = False
    def __init__(self, step): self.remaining = step
    def after_batch(self):
        self.remaining -= 1
        if not self.remaining: raise KeyboardInterrupt

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
    process.join(300)
    assert process.exitcode is not None, 'the process did not end'
    return process.exitcode

def wait_until(condition, process):
    "Wait until a condition holds while a process, forked or of `subprocess`, is running"
    is_running = process.is_alive if hasattr(process, 'is_alive') else lambda: process.poll() is None
    limit = time.monotonic() + 300
    while not condition():
        assert is_running(), 'the process ended before the condition held'
        assert time.monotonic() < limit, 'the condition did not hold within five minutes'
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
    names = ('ranking', 'stages', 'changes', 'runs', 'table')
    tables = {k: timeless(pd.read_parquet(out/f'{k}.parquet')) for k in names}
    tables['runs'] = tables['runs'].assign(draws=[{k: v.tobytes() for k, v in o.items()} for o in tables['runs'].draws])
    return tables, read_shard(out/'unlearned.safetensors')[0]

def assert_same(a, b):
    "Two runs have the same results, with weights equal bit for bit"
    (tables, weights), (tables_b, weights_b) = results(a), results(b)
    for k in tables: pd.testing.assert_frame_equal(tables[k], tables_b[k], check_exact=True)
    assert weights.keys() == weights_b.keys()
    for k in weights: assert weights[k].numpy().tobytes() == weights_b[k].numpy().tobytes(), k

def same_weights(a, b):
    "Do two learners have the same weights, bit for bit?"
    states = [o.model.state_dict().values() for o in (a, b)]
    return all(torch.equal(p, q) for p, q in zip(*states))

def request(*names, file='erase.csv'):
    "The options of a request for these ids, which are written to a file"
    pd.DataFrame({'id': names}).to_csv(file, index=False)
    return ['--forget', file]

def half_bright_picture(label, rng):
    "A noisy picture, brighter in its left or right half: two classes that a network learns in a few steps"
    x = rng.integers(0, 120, (16, 16))
    x[:, slice(0, 8) if label == 'left' else slice(8, 16)] += 120
    return x.astype(np.uint8)

def save_half_bright_pictures(folder, n, rng):
    "n pictures of each class, in folders named by the class"
    for label in ('left', 'right'):
        (folder/label).mkdir(parents=True)
        for i in range(n): Image.fromarray(half_bright_picture(label, rng)).save(folder/label/f'{i:02}.png')

def people(ids):
    "Loaders whose training set has the columns `who` and `person`, which repeat the given ids"
    def part(n): return torch.randn(n, 4), torch.arange(n) % 2
    frame = pd.DataFrame({'who': (ids*30)[:30]}).assign(person=lambda o: o.who)
    return loaders(Samples(*part(30), frame=frame), Samples(*part(10)), Samples(*part(10)))

clinic_module = '''
import pandas as pd, torch
from rsu.core.data import Samples, loaders as make
from rsu.core.recipe import Recipe, mlp

def loaders():
    g = torch.Generator().manual_seed(0)
    def part(n): return torch.randn(n, 4, generator=g), torch.arange(n) % 2
    persons = pd.DataFrame({'person': [f'patient-{i//2}' for i in range(N_TRAIN)]})
    return make(Samples(*part(N_TRAIN), frame=persons), Samples(*part(N_VALID)), Samples(*part(N_VALID)), bs=BATCH)

def network(): return mlp(4, 2)

def learner(): return Recipe(mlp, n_epoch=EPOCHS, lr=.01, bs=BATCH).learner(loaders())

def table(): return pd.DataFrame()
'''

# A request for persons of the clinic, but for `--forget`
clinic_request = ('forget --data clinic_data:loaders --model clinic_data:network --weights clinic.safetensors '
                  '--by person --algorithm neggradplus --n-epoch 4 --lr .01').split()

def make_clinic(folder, n_train=1200, n_valid=80, bs=64, n_epoch=5, n_references=4, recipe_epochs=5):
    "A folder with a user's module, the weights of a trained model and a bank; two rows belong to each person"
    values = dict(N_TRAIN=n_train, N_VALID=n_valid, BATCH=bs, EPOCHS=recipe_epochs)
    text = clinic_module
    for k, v in values.items(): text = text.replace(k, str(v))
    (folder/'clinic_data.py').write_text(text, encoding='utf-8')
    sys.path.insert(0, str(folder))
    from clinic_data import learner, loaders
    sys.path.remove(str(folder))
    del sys.modules['clinic_data']
    learn = Recipe(mlp, n_epoch=n_epoch, lr=.01, bs=bs).fit(loaders(), quiet=True)
    save_file({k: v.contiguous() for k, v in learn.model.state_dict().items()}, folder/'clinic.safetensors')
    ReferenceBank.fit(learner(), n=n_references, path=folder/'bank', quiet=True)
    return folder

chromium = os.environ.get('CHROMIUM') or shutil.which('chromium')
in_browser = pytest.mark.skipif(not chromium, reason='no Chromium here: install it, or name it in CHROMIUM')

def open_browser(playwright):
    "Chromium without a window and without requests of its own"
    return playwright.chromium.launch(executable_path=chromium, args=[
        '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
        '--disable-component-update', '--disable-sync'])

def before_its_report(finished, out):
    "A copy of a finished run's folder as it was before the report was written"
    shutil.copytree(finished, out)
    for p in out.glob('report.*'): p.unlink()
    facts = read_json(out/'run.json')
    key = key_of(settings=facts['settings'], request=facts['request'])
    write_json(out/'run.json', {**facts, 'done': False}, 'run', key)
    return out
