"""Run the notebooks as Jupyter's Run All does: each in a kernel of its own, every cell, from the top.

Nothing is skipped: a cell that needs a GPU, or hours, skips itself by an `if` that a reader sees.
`python .ci/notebooks.py [workers [notebook...]]`
"""
import logging, multiprocessing as mp, os, sys, time
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread

import nbformat
from ipykernel.kernelapp import IPKernelApp
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# Kernels are forked from a process that has imported these, which saves seconds for each. None of them asks whether it
# runs in a notebook, so nothing else differs from a kernel that Jupyter starts. (fastcore asks; matplotlib does, too.)
imported_once = ['ipykernel.kernelapp', 'nbclient', 'torch', 'torchvision', 'pandas', 'scipy.stats',
                 'sklearn.model_selection']

def _child(connection, function, args):
    function(connection.send, *args)
    connection.send(None) # the end: a process started from here may hold the pipe open

def in_processes(function, tasks, n_workers, deadline=float('inf')):
    """Call `function(send, *task)` for each task, at most `n_workers` at once, each in a process of its own.

    Yields `(task, message)` for what a task sends, and last `(task, None)` when it has ended: by itself, killed at the
    `deadline` (of `time.monotonic`), or never started because of it.
    """
    forks = mp.get_context('forkserver')
    forks.set_forkserver_preload(imported_once)
    waiting, running = [*tasks], {}
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < n_workers:
                task = waiting.pop(0)
                receives, sends = forks.Pipe(duplex=False)
                process = forks.Process(target=_child, args=(sends, function, task))
                process.start()
                sends.close()
                running[receives] = task, process
            for connection in wait([*running], timeout=min(1, max(0, deadline - time.monotonic()))):
                task, process = running[connection]
                try: message = connection.recv()
                except EOFError: message = None
                if message is None:
                    process.join()
                    del running[connection]
                yield task, message
    finally:
        for _, process in running.values(): process.kill()
    for task in [*(task for task, _ in running.values()), *waiting]: yield task, None

def processor_seconds():
    "Of this process and of those that it waited for"
    o = os.times()
    return o.user + o.system + o.children_user + o.children_system

class Client(NotebookClient):
    "Runs a notebook in a kernel that has been started"
    async def async_start_new_kernel(self, **kwargs): pass

def run_cells(file, kernel, send):
    "Run a notebook's cells in a kernel; sends the message of a cell that failed, or '', and the seconds, then stops it"
    manager = AsyncKernelManager(owns_kernel=False)
    manager.load_connection_file(kernel.abs_connection_file)
    start, failure = time.monotonic(), ''
    try: Client(nbformat.read(file, as_version=4), km=manager, timeout=None, startup_timeout=600).execute()
    except CellExecutionError as e: failure = str(e)
    finally:
        send((failure, time.monotonic() - start, processor_seconds()))
        kernel.io_loop.add_callback(kernel.io_loop.stop)

def run_notebook(send, file):
    "Become a kernel in the notebook's folder, and run the notebook from a thread"
    os.chdir(Path(file).parent)
    kernel = IPKernelApp.instance(log_level=logging.CRITICAL)
    kernel.initialize([])
    Thread(target=run_cells, args=(file, kernel, send), daemon=True).start()
    kernel.start()
    kernel.close()

# The longest notebooks start first, because the last one keeps the other processes waiting.
long = [f'{name}.ipynb' for name in ('04_cli', '01_pipeline', '06_compare', '07_tune', '00_sequence', '04_evaluate',
                                     '02_audit', '02_rankers')]

def by_length(file): return long.index(file.name) if file.name in long else len(long), file.as_posix()

def prepare(n_workers):
    "The notebooks, those that take long first; the folder and the environment in which they run"
    nbs = Path(__file__).resolve().parents[1]/'nbs'
    names = (o.relative_to(nbs) for o in nbs.rglob('*.ipynb'))
    files = sorted((nbs/o for o in names if not any(part[0] in '._' for part in o.parts)), key=by_length)
    os.chdir(nbs)
    # processes of a notebook's own would only wait for the other notebooks
    os.environ.setdefault('LOKY_MAX_CPU_COUNT', str(max(1, os.cpu_count()//n_workers)))
    # torch says so whenever fastai or torchvision is imported, in each kernel
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:`torch.jit.script` is deprecated:FutureWarning')
    return {o.relative_to(nbs).as_posix(): o for o in files}

def main(n_workers, only):
    only = [str(Path(o).resolve()) for o in only]
    files = {name: f for name, f in prepare(n_workers).items() if not only or str(f) in only}
    names = {f: name for name, f in files.items()}
    done = dict.fromkeys(files)
    for (file,), message in in_processes(run_notebook, [(f,) for f in files.values()], n_workers):
        if not message: continue
        done[names[file]] = message
        if message[0]: print(f'{names[file]}: {message[0]}', file=sys.stderr, flush=True)
    for name, o in sorted(done.items(), key=lambda o: -o[1][1] if o[1] else 0):
        print(f'{name}: {o[1]:.0f} secs, {o[2]:.0f} of a processor' if o else f'{name}: its process died')
    failed = [name for name, o in done.items() if not o or o[0]]
    if failed: sys.exit(f"Notebooks that failed: {', '.join(failed)}")

if __name__ == '__main__': main(int(sys.argv[1]) if sys.argv[1:] else os.cpu_count(), sys.argv[2:])
