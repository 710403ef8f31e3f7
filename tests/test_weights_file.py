"`rsu forget --weights`: a file of torch.save is refused, with the command that converts it."
import subprocess
from functools import partial

import pytest, torch
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper
from rsu.app.pipeline import _read_weights, _unwrapped
from rsu.core.recipe import mlp
from rsu.core.config import InputError
from rsu.core.data import Samples, loaders

@pytest.mark.parametrize('what', [lambda o: o, lambda o: dict(model=o, opt=dict(lr=.1))],
                         ids=['state dict', 'learn.save'])
@pytest.mark.parametrize('new', [True, False], ids=['zip', 'legacy'])
def test_a_file_of_torch_save_is_refused_with_a_command(tmp_path, what, new):
    state, path = mlp().state_dict(), tmp_path/'my model.pt'
    torch.save(what(state), path, _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match='was written by torch.save.*convert it once') as e: _read_weights(path, [])
    subprocess.run(str(e.value).splitlines()[1], shell=True, check=True, capture_output=True)
    got = _read_weights(tmp_path/'my model.safetensors', [])
    assert got.keys() == state.keys() and all(torch.equal(got[k], v) for k, v in state.items())

@pytest.mark.parametrize('opt_func', [Adam, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['fastai', 'PyTorch'])
def test_the_command_converts_a_file_of_fastai_after_training(tmp_path, opt_func):
    dls = loaders(*[Samples(torch.rand(16, 4), torch.arange(16) % 2)]*3)
    learn = Learner(dls, mlp(4, 2), torch.nn.CrossEntropyLoss(), opt_func=opt_func, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1) # its settings are numbers of NumPy in an `L`
    path = learn.save('mine')
    with pytest.raises(InputError, match='convert it once') as e: _read_weights(path, [])
    subprocess.run(str(e.value).splitlines()[1], shell=True, check=True, capture_output=True)
    got = _read_weights(path.with_suffix('.safetensors'), [])
    assert all(torch.equal(got[k], v) for k, v in learn.model.state_dict().items())

def test_a_damaged_file_is_refused_without_a_command(tmp_path):
    (tmp_path/'a.safetensors').write_bytes(b'damaged')
    with pytest.raises(InputError, match='cannot be read') as e: _read_weights(tmp_path/'a.safetensors', [])
    assert 'torch.load' not in str(e.value)

wrappers = {'DataParallel': torch.nn.DataParallel, 'torch.compile': torch.compile,
            'both': lambda net: torch.compile(torch.nn.DataParallel(net)),
            'Lightning': lambda net: torch.nn.ModuleDict({'model': net})}

keys = ['state_dict', 'model_state_dict', 'model', None] # one for each wrapper: a command takes seconds

@pytest.mark.parametrize('wrap, inside', [*zip(wrappers.values(), keys)], ids=wrappers)
def test_parameter_names_with_a_prefix_are_read(tmp_path, wrap, inside):
    net, path = mlp(4, 2), tmp_path/"the 'last' $model.ckpt"
    state = wrap(net).state_dict()
    assert not state.keys() & net.state_dict().keys()
    torch.save({inside: state, 'epoch': 3} if inside else state, path)
    with pytest.raises(InputError, match='convert it once') as e: _read_weights(path, [])
    subprocess.run(str(e.value).splitlines()[1], shell=True, check=True, capture_output=True)
    own = mlp(4, 2)
    own.load_state_dict(_unwrapped(_read_weights(path.with_suffix('.safetensors'), []), own.state_dict()))
    assert all(map(torch.equal, own.parameters(), net.parameters()))

def test_weights_of_other_objects_are_refused_by_name():
    own = mlp(4, 2).state_dict()
    state = {**{f'model.{k}': v for k, v in own.items()}, 'metric.sum': torch.zeros(1)}
    with pytest.raises(InputError, match="begin with 'model.' in the file.*'metric.sum' for example: save the network"):
        _unwrapped(state, own)
    one = torch.nn.ModuleDict({'fc': torch.nn.Linear(2, 2)}).state_dict() # names that begin alike by themselves
    assert _unwrapped({f'module.{k}': v for k, v in one.items()}, one).keys() == one.keys()
    assert _unwrapped(own, one) is own # of another network: `load_state_dict` says so
