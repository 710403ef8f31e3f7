"""Run a notebook and store its outputs: `python .ci/outputs.py nbs/core/02_data.ipynb`.

Cells that the tests skip (`#| cuda`, `#| slow`, `#| eval: false`) are not run and keep their outputs. If a cell
fails, the notebook is not changed.
"""
import re, sys

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.config import get_config

skipped = re.compile(rf"^#\|\s*({'|'.join(get_config().tst_flags.split())}|eval:\s*false)\b", re.M)

class Client(NotebookClient):
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if skipped.search(cell.source): return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)

def main(path):
    nb = nbformat.read(path, as_version=4)
    folder, _, _ = path.rpartition('/')
    where = {'metadata': {'path': folder}}
    sharp = ['--InlineBackend.figure_formats={"retina"}'] # images at twice the resolution, with their size
    Client(nb, timeout=None, kernel_name='python3', coalesce_streams=True, resources=where,
           extra_arguments=sharp).execute()
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(path)

if __name__ == '__main__': main(sys.argv[1])
