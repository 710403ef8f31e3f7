"""What only a GPU can show, in at most eight minutes: `python .ci/gpu.py`, or `make gpu`.

First the notebooks that have cells for a GPU, as tests; then the GPU's half of nbs/experiments/speed.ipynb, alone;
then, in the time that is left, the other notebooks. What did not fit is listed. Prints a table and writes it to
nbs/experiments/gpu.parquet. With --cpu the speed notebook's half is done on a processor in small, which shows that its
cells run; that table is printed, and written only with --out.
"""
import argparse, os, sys, time
from pathlib import Path

import pandas as pd, torch
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from notebooks import in_processes, prepare, run_notebook

in_small = dict(device='cpu', n=400, half=64, forget=20, times=1, jobs=2, matrix=64, workers=(0,))

def directives(cell):
    "The words behind `#|` in the first lines of a cell"
    if cell.cell_type != 'code': return set()
    return {o[2:].strip() for o in cell.source.splitlines() if o.startswith('#|')}

def has_gpu_cells(file): return any('cuda' in directives(o) for o in read_nb(file).cells)

class Sends:
    "Takes the place of the notebook's list of figures"
    def __init__(self, send): self.append = send

def measure(send, file, changes):
    "Run the cells of a notebook that a GPU needs; sends a dictionary for each figure, and for what went wrong"
    os.chdir(Path(file).parent)
    os.environ['RSU_FULL'] = '1' # without it the notebook measures nothing
    shell = CaptureShell(file)
    cells = [o for o in read_nb(file).cells if directives(o) & {'gpu_setup', 'cuda'}]
    for i, cell in enumerate(cells, 1):
        shell.run(cell.source)
        if shell.exc:
            failure = f'{type(shell.exc).__name__}: {shell.exc}'
            return send(dict(name=f'cell {i} of {len(cells)}', result=failure))
        space = shell.user_ns
        if 'figures' in space and not isinstance(space['figures'], Sends):
            space['figures'] = Sends(send)
            space['scale'].update(changes, **({'networks': space['scale']['networks'][:1]} if changes else {}))
        send(dict(cells_done=i, cells=len(cells)))

def test(files, n_workers, deadline):
    "Run notebooks; a row for each, with what became of it"
    rows = {f: dict(part='test', name=name, result='not run') for name, f in files.items()}
    for (file,), message in in_processes(run_notebook, [(f,) for f in files.values()], n_workers, deadline):
        if message: rows[file] |= dict(result='failed' if message[0] else 'passed', value=message[1], unit='s')
        elif rows[file]['result'] == 'not run' and time.monotonic() < deadline: rows[file]['result'] = 'failed'
    return [*rows.values()]

def speed(file, changes, deadline):
    "The speed notebook's figures, a row for each, and a row for what was not run"
    rows, done, cells = [], 0, None
    for _, message in in_processes(measure, [(file, changes)], 1, deadline):
        if message is None: continue
        if 'cells' in message: done, cells = message['cells_done'], message['cells']
        else: rows.append(dict(part='speed', result='measured') | message)
    failed = any(row['result'] != 'measured' for row in rows)
    if done != cells and not failed:
        how = 'failed' if time.monotonic() < deadline else 'not run'
        rows.append(dict(part='speed', name=f'after cell {done} of {cells or "?"}', result=how))
    return rows

def run(seconds, n_workers, changes, only=None):
    "All three parts within `seconds`; the rows of the table"
    start, files = time.monotonic(), prepare(n_workers)
    speed_notebook = str(Path('experiments/speed.ipynb').absolute())
    files = {name: f for name, f in files.items() if only is None or name in only}
    first = {name: f for name, f in files.items() if has_gpu_cells(f) and str(f) != speed_notebook}
    rest = {name: f for name, f in files.items() if name not in first and not name.startswith('experiments/')}
    rows = test(first, n_workers, start + .45*seconds)
    rows += speed(speed_notebook, changes, start + .95*seconds)
    return rows + test(rest, n_workers, start + seconds)

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cpu', action='store_true', help='in small on a processor, to see that the cells run')
    parser.add_argument('--minutes', type=float, default=7.5, help='for everything (7.5)')
    parser.add_argument('--workers', type=int, default=min(8, os.cpu_count()), help='notebooks at once')
    parser.add_argument('--only', nargs='*', metavar='NOTEBOOK', help='these notebooks as tests, not all')
    parser.add_argument('--out', type=Path, help='the table as Parquet (nbs/experiments/gpu.parquet)')
    args = parser.parse_args(argv)
    if not args.cpu and not torch.cuda.is_available():
        print('No CUDA device here: nothing was tested and nothing measured.', file=sys.stderr)
        return 1
    out = args.out or (None if args.cpu else Path('nbs/experiments/gpu.parquet'))
    if out: out = out.absolute()
    rows = run(60*args.minutes, args.workers, in_small if args.cpu else {}, args.only)
    device = 'cpu' if args.cpu else torch.cuda.get_device_name()
    table = pd.DataFrame(rows, columns=['part', 'name', 'value', 'unit', 'result'])
    table = table.assign(device=device, torch=torch.__version__)
    if out: table.to_parquet(out)
    print(table.drop(columns=['device', 'torch']).to_string(index=False, na_rep=''))
    missing = table.name[table.result == 'not run']
    if len(missing): print(f"Not run within {args.minutes:g} minutes: {', '.join(missing)}")
    return int(not table.result.isin(['passed', 'measured', 'not run']).all())

if __name__ == '__main__': sys.exit(main())
