"""Run the notebooks as tests: `nbdev_test`, but each notebook in a process of its own.

nbdev's workers go from one notebook to the next, and take along what the last one defined: a class of one page would
turn up in the tables of another. `python .ci/notebooks.py [workers] [flags...]`
"""
import multiprocessing as mp, os, sys
from concurrent.futures import ProcessPoolExecutor
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

def main(n_workers, flags):
    config = get_config()
    files = sorted((f.absolute() for f in nbglob(as_path=True)), reverse=True) # the long ones come last in the site, and first here
    forks = mp.get_context('forkserver')
    forks.set_forkserver_preload(['nbdev.test', 'fastai.vision.all'])
    os.chdir(config.nbs_path)
    os.environ.setdefault('LOKY_MAX_CPU_COUNT', str(max(1, os.cpu_count()//n_workers))) # processes of a notebook's own would only wait for the other notebooks
    with ProcessPoolExecutor(n_workers, mp_context=forks, max_tasks_per_child=1) as pool:
        runs = [pool.submit(test_nb, f, config.tst_flags.split(), flags, basepath=config.config_path) for f in files]
        done = {str(f.relative_to(config.nbs_path)): run.result() for f,run in zip(files, runs)}
    for name,(_,secs) in sorted(done.items(), key=lambda o: -o[1][1]): print(f"{name}: {secs:.0f} secs")
    if failed := [name for name,(passed,_) in done.items() if not passed]: sys.exit(f"Notebooks that failed: {', '.join(failed)}")

if __name__ == '__main__': main(int(sys.argv[1]) if sys.argv[1:] else os.cpu_count(), sys.argv[2:])
