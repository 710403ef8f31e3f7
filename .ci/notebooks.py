"""Run the notebooks as tests: `nbdev_test`, but each notebook in a process of its own.

nbdev's workers go from one notebook to the next, and take along what the last one defined: a class of one page would
turn up in the tables of another. `python .ci/notebooks.py [workers] [flags...]`
"""
import multiprocessing as mp, os, sys, time
from multiprocessing.connection import wait

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

def _child(connection, function, args):
    function(connection.send, *args)
    connection.send(None) # the end: a process started from here may hold the pipe open

def in_processes(function, tasks, n_workers, deadline=float('inf')):
    """Call `function(send, *task)` for each task, at most `n_workers` at once, each in a process of its own.

    Yields `(task, message)` for what a task sends, and last `(task, None)` when it has ended: by itself, killed at the
    `deadline` (of `time.monotonic`), or never started because of it.
    """
    forks = mp.get_context('forkserver')
    forks.set_forkserver_preload(['nbdev.test', 'fastai.vision.all'])
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

def run_notebook(send, file, flags):
    "Run a notebook; sends whether it passed, the seconds it took and the processor's"
    config = get_config()
    passed, seconds = test_nb(file, config.tst_flags.split(), flags, basepath=config.config_path)
    send((passed, seconds, processor_seconds()))

# The longest notebooks start first, because the last one keeps the other processes waiting.
long = [f'{name}.ipynb' for name in ('04_cli', '01_pipeline', '06_compare', '07_tune', '00_sequence', '04_evaluate',
                                     '02_audit', '02_rankers')]

def by_length(file): return long.index(file.name) if file.name in long else len(long), file.as_posix()

def prepare(n_workers):
    "The notebooks, those that take long first; the folder and the environment in which they run"
    config = get_config()
    files = sorted((f.absolute() for f in nbglob(as_path=True)), key=by_length)
    os.chdir(config.nbs_path)
    # processes of a notebook's own would only wait for the other notebooks
    os.environ.setdefault('LOKY_MAX_CPU_COUNT', str(max(1, os.cpu_count()//n_workers)))
    return {str(f.relative_to(config.nbs_path)): f for f in files}

def main(n_workers, flags):
    files = prepare(n_workers)
    names = {f: name for name, f in files.items()}
    done = dict.fromkeys(files)
    for (file, _), message in in_processes(run_notebook, [(f, flags) for f in files.values()], n_workers):
        if message: done[names[file]] = message
    for name, o in sorted(done.items(), key=lambda o: -o[1][1] if o[1] else 0):
        print(f'{name}: {o[1]:.0f} secs, {o[2]:.0f} of a processor' if o else f'{name}: its process died')
    failed = [name for name, o in done.items() if not (o and o[0])]
    if failed: sys.exit(f"Notebooks that failed: {', '.join(failed)}")

if __name__ == '__main__': main(int(sys.argv[1]) if sys.argv[1:] else os.cpu_count(), sys.argv[2:])
