"What cannot be served is refused before any work: exit code 2, one sentence, and no folder left behind."
import os, sys

import pytest
from common import call, rsu, shell, small, state

# Data of a user's own, in a module beside the call. DOES stands for what it does with the tensors.
module = '''
import torch
from rsu.core.data import Samples, loaders as make

def loaders():
    g = torch.Generator().manual_seed(0)
    part = lambda n: [torch.randn(n, 4, generator=g), torch.arange(n) % 2]
    a, b, c = part(100), part(40), part(40)
    DOES
'''
nan = 'a[0][7, 2] = float("nan")'
ours = 'return make(Samples(*a), Samples(*b), Samples(*c))'
torchs = '''from fastai.data.core import DataLoaders
    from torch.utils.data import DataLoader, TensorDataset
    return DataLoaders(*(DataLoader(TensorDataset(*o), batch_size=20) for o in (a, b, c)))'''

# The settings that every case starts from; what it gives again counts.
quick = [*small, '--ranker', 'confidence', '--out', 'out']
own = [o for o in quick if o not in ('--n', '300')] # with data of one's own: all of them

@pytest.fixture
def here(here, monkeypatch):
    "An empty folder to work in; a run that should have been refused fails where its work begins."
    def fit(*args, **kwargs): raise AssertionError('this was not refused: the training began')
    monkeypatch.setattr('rsu.core.recipe.Recipe.fit', fit)
    return here

def refused(capsys, *args, says=(), start=quick):
    "`rsu run` refuses: in one sentence, before anything is made."
    capsys.readouterr()
    assert call('run', *start, *args) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and err.startswith('rsu: ') and err.rstrip().endswith(('.', '?', '--help.')), err
    for o in [says] if isinstance(says, str) else says: assert o in err
    assert not os.path.lexists('out')
    return err

@pytest.mark.parametrize('option, name, near', [
    ('data', 'digit', 'digits'), ('data', 'fashon_mnist', 'fashion_mnist'), ('ranker', 'lyra', 'lira'), ('order', 'descendin', 'descending'),
    ('algorithm', 'scrab', 'scrub'), ('algorithm', 'NegGradPlus', 'neggradplus'), ('pending', 'retained', 'retain')])
def test_near_match(option, name, near, here, capsys): refused(capsys, f'--{option}', name, says=(name, f"'{near}'"))

@pytest.mark.parametrize('forget, says', [
    ('', 'not understood'), ('random', 'not understood'), ('random:', 'not understood'), ('random:few', 'random:few'), ('random:-1', 'random:-1'),
    ('random:0', 'empty'), ('random:0.0001', 'empty'), ('random:300', 'whole training set'), ('random:301', '301 of 300'),
    ('random:nan', 'random:nan'), ('random:inf', 'random:inf'), ('random:12.5', 'random:12.5'), ('class:10', "no class '10'"), ('class:3.5', "'3.5'"),
    ('top:0', 'top:0'), ('top:x', 'top:x'), ('top:300', '300 of 300'), ('top:²', 'top:²'), ('missing.csv', 'missing.csv')])
def test_forget_set(forget, says, here, capsys): refused(capsys, '--forget', forget, says=says)

@pytest.mark.parametrize('text, says', [
    ('', 'empty'), ('id\n', 'empty'), ('id\n5\n9\n5\n', 'Position 5 is named twice'), ('id\n5\n300\n', 'Position 300'), ('id\n-1\n5\n', 'Position -1'),
    ('id\nanna\nbert\n', 'whole numbers'), ('id\n1.5\n2.5\n', 'whole numbers'), ('id\n1\n\n3\n,\n', 'ids.csv'), ('a,b\n1,2\n', "no column 'id'"),
    ('id\n' + '\n'.join(map(str, range(300))), 'whole training set'), ('id\n99999999999999999999\n', 'ids.csv'),
    ('id\n1\n2,3,4\n', 'ids.csv'), (b'\xff\xfe\x00\x01', 'ids.csv'),
    # a file without a header: its first id would be taken for the column's name and never be forgotten
    ('5\n6\n7\n', 'ids.csv')], ids=lambda o: repr(o[:20]) if o else 'nothing')
def test_csv(text, says, here, capsys):
    (here/'ids.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    # what is wrong has to be told; where the file can be read and only its ids are wrong, they are named instead
    refused(capsys, '--forget', 'ids.csv', says=() if says == 'ids.csv' else says)

def test_csv_is_a_folder(here, capsys):
    (here/'ids.csv').mkdir()
    refused(capsys, '--forget', 'ids.csv', says='ids.csv')

@pytest.mark.parametrize('groups', [13, 90])
def test_more_groups_than_samples(groups, here, capsys): refused(capsys, '--groups', groups, says=f'{groups} groups cannot be made of 12')

def test_too_few_steps_for_the_groups(here, capsys): refused(capsys, '--groups', 12, says='fewer groups')

numeric = 'n references groups n_epoch train_epochs oracles lr seed'.split()
@pytest.mark.parametrize('option, value', [(k, v) for k in numeric for v in ('many', '', '0', '-1', '1.5', 'nan', 'inf', '1e99')
                                           if not (k == 'seed' and v == '0' or k == 'lr' and v == '1.5')])
def test_numbers(option, value, here, capsys):
    says = '1e+99' if (option, value) == ('lr', '1e99') else value # as Python writes it
    refused(capsys, f"--{option.replace('_', '-')}", value, says=says)

@pytest.mark.parametrize('option, value', [('references', 3), ('references', 1), ('oracles', 1), ('n', 9), ('n', 2000), ('seed', 2**32)])
def test_numbers_that_do_not_fit(option, value, here, capsys): refused(capsys, f'--{option}', value, says=str(value))

@pytest.mark.parametrize('text', [
    'oracles = 2.0', 'references = 4.0', 'train_epochs = 1.5', 'seed = "5"', 'seed = 1.5', 'n = 200.0', 'forget = 20', 'data = 3', 'order = 3', 'n_epoch = "3"', 'lr = "x"', 'lr = true',
    '[algorithm]\nkind = "NegGradPlus"\nlr = "x"', '[algorithm]\nkind = "NegGradPlus"\nlr = -0.01', '[algorithm]\nkind = "NegGradPlus"\nn_epoch = -1', '[algorithm]\nkind = "NegGradPlus"\nbs = 0',
    '[algorithm]\nlr = 1.0', 'groups = "breaks:0"'])
def test_values_in_a_file(text, here, capsys):
    # an option beside the file would win over what the file says of it
    (here/'run.toml').write_text(text, encoding='utf-8')
    name = text.split(' =')[0]
    start = [o for k, v in zip(small[::2], small[1::2]) if k != '--'+name.replace('_', '-') and not (name.startswith('groups') and k == '--groups') for o in (k, v)]
    refused(capsys, '--config', 'run.toml', '--ranker', 'confidence', '--out', 'out', start=start)

@pytest.mark.parametrize('args', [['--seeds', '3'], ['--data'], ['stray'], ['--lr', '--seed', '3']])
def test_the_command_itself(args, here, capsys): refused(capsys, *args)

# How the module is called must differ from case to case: Python imports a name once.
@pytest.mark.parametrize('how', ['ours', 'torchs'])
def test_nan_in_the_data(how, here, capsys):
    (here/f'nan_{how}.py').write_text(module.replace('DOES', f'{nan}\n    {globals()[how]}'), encoding='utf-8')
    refused(capsys, '--data', f'nan_{how}:loaders', '--groups', 1, says='NaN', start=own)

wrong = dict(
    bytes_as_inputs=('a[0] = (9*a[0]).byte(); ' + ours, 'uint8'),
    matrices=('a[0], b[0], c[0] = (torch.rand(len(o[1]), 8, 8) for o in (a, b, c)); ' + ours, '(8, 8)'),
    one_hot=('a[1] = torch.eye(2)[a[1]]; ' + ours, 'argmax'), regression=('a[1] = a[1] + .5; ' + ours, 'regression'),
    minus_one=('a[1] = 2*a[1] - 1; ' + ours, 'from 0'),
    doubles=('a[0], b[0], c[0] = a[0].double(), b[0].double(), c[0].double(); ' + torchs, 'float64'),
    floats=('a[1] = a[1].float(); ' + torchs, 'y.long()'))
@pytest.mark.parametrize('name', wrong)
def test_data_that_a_run_cannot_use(name, here, capsys):
    body, says = wrong[name]
    (here/f'{name}.py').write_text(module.replace('DOES', body), encoding='utf-8')
    refused(capsys, '--data', f'{name}:loaders', '--groups', 1, says=says, start=own)

@pytest.mark.parametrize('name, body', [('a_number', 'return 3'), ('nothing', 'pass'), ('one_loader', 'return make(Samples(*a), Samples(*b), Samples(*c)).train')])
def test_a_function_that_returns_no_loaders(name, body, here, capsys):
    (here/f'{name}.py').write_text(module.replace('DOES', body), encoding='utf-8')
    refused(capsys, '--data', f'{name}:loaders', says=('DataLoaders', f'{name}:loaders'), start=own)

def test_n_is_not_passed_over_for_data_of_ones_own(here, capsys):
    (here/'all_of_it.py').write_text(module.replace('DOES', ours), encoding='utf-8')
    refused(capsys, '--data', 'all_of_it:loaders', '--n', 50, '--groups', 1, says='--n 50')

@pytest.mark.parametrize('name', ['nowhere:loaders', 'math:loaders', 'nowhere.at.all:f', ':f', 'math:', '.math:f', 'math:pi'])
def test_a_module_that_does_not_exist(name, here, capsys): refused(capsys, '--data', name, says=f"'{name}'")

def test_a_folder_below_a_file(here, capsys):
    (here/'file').write_text('', encoding='utf-8')
    for out in ('file', 'file/out'): refused(capsys, '--out', out, says=f"'{out}'")
    assert (here/'file').read_text(encoding='utf-8') == ''

@pytest.mark.parametrize('text', ['', '{', '[]', '3', '{}', '{"settings": 3}', '{"settings": {"data": "digits"}}', '{"name": "another program"}'])
def test_a_folder_of_something_else(text, here, capsys):
    (here/'run').mkdir()
    (here/'run'/'run.json').write_text(text, encoding='utf-8')
    before = state(here/'run')
    refused(capsys, '--out', 'run', says="run")
    assert state(here/'run') == before

def test_data_that_cannot_be_downloaded(tmp_path):
    # a proxy that nobody answers at is as good as no network, and says so at once
    (tmp_path/'empty').mkdir()
    gone = {k: 'http://127.0.0.1:9' for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy')}
    done = shell('run', *quick, '--data', 'fashion_mnist', cwd=tmp_path, env={**os.environ, **gone, 'RSU_DATA': str(tmp_path/'empty'), 'no_proxy': '', 'NO_PROXY': ''})
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'RSU_DATA' in done.stderr
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('command', [(rsu,), (sys.executable, '-m', 'rsu')], ids=['rsu', 'python -m rsu'])
def test_from_a_shell(command, tmp_path):
    # what all the others ask of a function in this process
    done = shell('run', *quick, '--ranker', 'lyra', cwd=tmp_path, command=command)
    assert (done.returncode, done.stdout, done.stderr) == (2, '', "rsu: There is no ranker called 'lyra': did you mean 'lira'?\n")
    assert list(tmp_path.iterdir()) == []
