"""Run a notebook and store its outputs: `python .ci/outputs.py nbs/core/02_data.ipynb`.

A cell that skips itself (`if torch.cuda.is_available():`, `if full:`) keeps its outputs. If a cell fails, the notebook
is not changed. Pictures are stored with 256 colours where this changes nothing that can be seen: a third of the size.
"""
import base64, io, os, re, sys

import nbformat
import numpy as np
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from PIL import Image

condition = re.compile(r'^if (?!__name__)', re.M)

class Client(NotebookClient):
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        before = cell.get('outputs')
        cell = await super().async_execute_cell(cell, cell_index, **kwargs)
        if not cell.get('outputs') and condition.search(cell.source): cell.outputs = before
        return cell

def with_fewer_colours(png):
    "A picture (base64) with 256 colours; the given one if that is transparent or differs by more than 1/255 on average"
    given = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGBA')
    if given.getextrema()[3][0] < 255: return png
    given = given.convert('RGB')
    fewer = given.quantize(256, dither=Image.Dither.NONE)
    if np.abs(np.asarray(given, float)-np.asarray(fewer.convert('RGB'))).mean() > 1: return png
    file = io.BytesIO()
    fewer.save(file, 'PNG', optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)

def make_pictures_small(nb):
    for data in (o.data for cell in nb.cells for o in cell.get('outputs', []) if 'data' in o):
        if 'image/png' in data: data['image/png'] = with_fewer_colours(data['image/png'])

def main(path):
    os.environ.pop('MPLBACKEND', None) # with another backend than that of notebooks, no figure is stored
    nb = nbformat.read(path, as_version=4)
    folder, _, _ = path.rpartition('/')
    where = {'metadata': {'path': folder}}
    sharp = ['--InlineBackend.figure_formats={"retina"}'] # images at twice the resolution, with their size
    Client(nb, timeout=None, kernel_name='python3', coalesce_streams=True, resources=where,
           extra_arguments=sharp).execute()
    make_pictures_small(nb)
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(path)

if __name__ == '__main__': main(sys.argv[1])
