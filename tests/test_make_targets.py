"Targets of the Makefile that no other test runs."
import base64, importlib.util, io, os, subprocess
from pathlib import Path

import numpy as np
from PIL import Image

root = Path(__file__).parent.parent

def test_make_lab_opens_a_tutorial_that_exists():
    # make test runs this, too: what the outer make hands to its children changes what an inner one prints
    env = {k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS')}
    done = subprocess.run(['make', '-n', 'lab'], cwd=root, env=env, capture_output=True, encoding='utf-8', check=True)
    command = done.stdout.splitlines()[-1].split()
    assert command[:2] == ['jupyter', 'lab'] and (root/command[2]).is_file() and command[2].startswith('nbs/tutorials/')

def test_stored_pictures_get_smaller_only_where_nothing_is_lost():
    spec = importlib.util.spec_from_file_location('stored_outputs', root/'.ci'/'outputs.py')
    outputs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(outputs)
    def png(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, 'PNG')
        return base64.b64encode(file.getvalue()).decode()
    ramp = np.arange(0, 256, 2, dtype=np.uint8)
    plain = np.dstack([*np.broadcast_arrays(ramp[:,None], ramp[None]//16*16, ramp[:,None])])
    noise = np.random.default_rng(0).integers(0, 256, (64,64,3), dtype=np.uint8)
    smaller = outputs.with_fewer_colours(png(plain))
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(smaller))).convert('RGB'), float)
    assert len(smaller) <= len(png(plain)) and np.abs(read-plain).mean() <= 1
    assert outputs.with_fewer_colours(png(noise)) == png(noise)
    clear = np.dstack([plain, np.zeros_like(plain[...,0])])
    assert outputs.with_fewer_colours(png(clear)) == png(clear)
    lines = np.full((200,200,3), 255, dtype=np.uint8)
    lines[::7] = [31,119,180]
    exact = outputs.with_fewer_colours(png(lines))
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(exact))).convert('RGB')) == lines).all()
    assert len(exact) < len(png(lines))
