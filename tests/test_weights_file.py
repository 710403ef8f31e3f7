"`rsu forget --weights`: a file of torch.save is refused, with the command that converts it."
import subprocess

import pytest, torch
from safetensors.torch import load_file
from rsu.cli import _weights
from rsu.recipe import mlp
from rsu.value import Refused

@pytest.mark.parametrize('what', [lambda o: o, lambda o: dict(model=o, opt=dict(lr=.1))],
                         ids=['state dict', 'learn.save'])
@pytest.mark.parametrize('new', [True, False], ids=['zip', 'legacy'])
def test_a_file_of_torch_save_is_refused_with_a_command(tmp_path, what, new):
    state, path = mlp().state_dict(), tmp_path/'my model.pt'
    torch.save(what(state), path, _use_new_zipfile_serialization=new)
    with pytest.raises(Refused, match='was written by torch.save.*convert it once') as e: _weights(path, [])
    subprocess.run(str(e.value).splitlines()[1], shell=True, check=True, capture_output=True)
    got = _weights(tmp_path/'my model.safetensors', [])
    assert got.keys() == state.keys() and all(torch.equal(got[k], v) for k, v in state.items())

def test_other_files_have_no_command(tmp_path):
    (tmp_path/'a.safetensors').write_bytes(b'torn')
    with pytest.raises(Refused, match='cannot be read') as e: _weights(tmp_path/'a.safetensors', [])
    assert 'torch.load' not in str(e.value)
