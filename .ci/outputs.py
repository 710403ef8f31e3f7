"""Run a notebook and store its outputs: `python .ci/outputs.py nbs/core/02_data.ipynb`.

A cell that skips itself (`if torch.cuda.is_available():`, `if full:`) keeps its outputs. If a cell fails, the notebook
is not changed.
"""
import os, re, sys

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean

condition = re.compile(r'^if (?!__name__)', re.M)

class Client(NotebookClient):
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        before = cell.get('outputs')
        cell = await super().async_execute_cell(cell, cell_index, **kwargs)
        if not cell.get('outputs') and condition.search(cell.source): cell.outputs = before
        return cell

def main(path):
    os.environ.pop('MPLBACKEND', None) # with another backend than that of notebooks, no figure is stored
    nb = nbformat.read(path, as_version=4)
    folder, _, _ = path.rpartition('/')
    where = {'metadata': {'path': folder}}
    sharp = ['--InlineBackend.figure_formats={"retina"}'] # images at twice the resolution, with their size
    Client(nb, timeout=None, kernel_name='python3', coalesce_streams=True, resources=where,
           extra_arguments=sharp).execute()
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(path)

if __name__ == '__main__': main(sys.argv[1])
