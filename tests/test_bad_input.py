"`rsu run` refuses bad input before any work: exit code 2, one sentence, and no folder is left behind."
import os, sys

import pytest
from common import call, rsu, shell, small, state

# A user's module with data, in the folder of the call. DOES is replaced by what a test does with the tensors.
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

# The settings of every case. An option that is given twice has its last value.
quick = [*small, '--ranker', 'confidence', '--out', 'out']
own = [o for o in quick if o not in ('--n', '300')] # --n cannot be given for a user's data

@pytest.fixture
def here(here, monkeypatch):
    "An empty folder to work in. A run that is not refused fails as soon as it trains."
    def fit(*args, **kwargs): raise AssertionError('the run was not refused: its training began')
    monkeypatch.setattr('rsu.core.recipe.Recipe.fit', fit)
    return here

def refused(capsys, *args, says=(), start=quick):
    "`rsu run` prints one sentence, exits with 2 and makes no folder; returns the sentence."
    capsys.readouterr()
    assert call('run', *start, *args) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and err.startswith('rsu: ') and err.rstrip().endswith(('.', '?', '--help.')), err
    for o in [says] if isinstance(says, str) else says: assert o in err
    assert not os.path.lexists('out')
    return err

@pytest.mark.parametrize('option, name, near', [
    ('data', 'digit', 'digits'), ('data', 'fashon_mnist', 'fashion_mnist'), ('ranker', 'lyra', 'lira'),
    ('order', 'descendin', 'descending'), ('algorithm', 'scrab', 'scrub'),
    ('algorithm', 'NegGradPuls', 'neggradplus'), ('pending', 'retained', 'retain')])
def test_a_misspelt_name_is_refused_with_the_nearest_one(option, name, near, here, capsys):
    refused(capsys, f'--{option}', name, says=(name, f"'{near}'"))

@pytest.mark.parametrize('forget, says', [
    ('', 'not understood'), ('random', 'not understood'), ('random:', 'not understood'), ('random:few', 'random:few'),
    ('random:-1', 'random:-1'), ('random:0', 'empty'), ('random:0.0001', 'empty'),
    ('random:300', 'whole training set'), ('random:301', '301 of 300'), ('random:nan', 'random:nan'),
    ('random:inf', 'random:inf'), ('random:12.5', 'random:12.5'), ('class:10', "no class '10'"),
    ('class:3.5', "'3.5'"), ('top:0', 'top:0'), ('top:x', 'top:x'), ('top:300', '300 of 300'), ('top:²', 'top:²'),
    ('mislabelled:0', 'mislabelled:0'), ('mislabelled:0.1', 'mislabelled:60'),
    ('mislabelled:301', '300 training samples'), ('mislabelled:300', 'whole training set'),
    ('missing.csv', 'missing.csv')])
def test_a_bad_forget_set_is_refused(forget, says, here, capsys): refused(capsys, '--forget', forget, says=says)

@pytest.mark.parametrize('text, says', [
    ('', 'empty'), ('id\n', 'empty'), ('id\n5\n9\n5\n', 'Position 5 is named twice'), ('id\n5\n300\n', 'Position 300'),
    ('id\n-1\n5\n', 'Position -1'), ('id\nanna\nbert\n', 'whole numbers'), ('id\n1.5\n2.5\n', 'whole numbers'),
    ('id\n1\n\n3\n,\n', 'ids.csv'), ('a,b\n1,2\n', "no column 'id'"),
    ('id\n' + '\n'.join(map(str, range(300))), 'whole training set'), ('id\n99999999999999999999\n', 'ids.csv'),
    ('id\n1\n2,3,4\n', 'ids.csv'), (b'\xff\xfe\x00\x01', 'ids.csv'),
    # a file without a header: its first id would become the column's name and would never be forgotten
    ('5\n6\n7\n', 'ids.csv')], ids=lambda o: repr(o[:20]) if o else 'nothing')
def test_a_bad_csv_file_is_refused(text, says, here, capsys):
    (here/'ids.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(capsys, '--forget', 'ids.csv', says=says)

def test_a_folder_in_place_of_a_csv_file_is_refused(here, capsys):
    (here/'ids.csv').mkdir()
    refused(capsys, '--forget', 'ids.csv', says='ids.csv')

@pytest.mark.parametrize('groups', [13, 90])
def test_more_groups_than_samples_are_refused(groups, here, capsys):
    refused(capsys, '--groups', groups, says=f'{groups} groups cannot be made of 12')

def test_more_groups_than_steps_are_refused(here, capsys): refused(capsys, '--groups', 12, says='fewer groups')

numeric = 'n references groups n_epoch train_epochs oracles lr seed'.split()
numbers = [(k, v) for k in numeric for v in ('many', '', '0', '-1', '1.5', 'nan', 'inf', '1e99')]
@pytest.mark.parametrize('option, value', [o for o in numbers if o not in (('seed', '0'), ('lr', '1.5'))])
def test_what_is_not_a_valid_number_is_refused(option, value, here, capsys):
    says = '1e+99' if (option, value) == ('lr', '1e99') else value # as Python writes it
    refused(capsys, f"--{option.replace('_', '-')}", value, says=says)

@pytest.mark.parametrize('option, value', [('references', 3), ('references', 1), ('oracles', 1), ('n', 9), ('n', 2000),
                                           ('seed', 2**32)])
def test_numbers_out_of_range_are_refused(option, value, here, capsys):
    refused(capsys, f'--{option}', value, says=str(value))

neggradplus = '[algorithm]\nkind = "NegGradPlus"\n'
@pytest.mark.parametrize('text, says', [
    ('oracles = 2.0', 'oracles'), ('references = 4.0', 'references'), ('train_epochs = 1.5', '--train-epochs 1.5'),
    ('seed = "5"', 'seed'), ('seed = 1.5', 'seed'), ('n = 200.0', 'n'), ('forget = 20', 'forget'), ('data = 3', 'data'),
    ('order = 3', 'order'), ('n_epoch = "3"', '--n-epoch 3'), ('lr = "x"', 'lr'), ('lr = true', 'lr'),
    (neggradplus + 'lr = "x"', '--lr x'), (neggradplus + 'lr = -0.01', '--lr -0.01'),
    (neggradplus + 'n_epoch = -1', '--n-epoch -1'), (neggradplus + 'bs = 0', 'bs=0'),
    ('[algorithm]\nlr = 1.0', 'algorithm'), ('groups = "breaks:0"', '0 must be')])
def test_bad_values_in_a_settings_file_are_refused(text, says, here, capsys):
    (here/'run.toml').write_text(text, encoding='utf-8')
    name = text.split(' =')[0]
    # without the option of that name, which would replace the file's value
    start = [o for k, v in zip(small[::2], small[1::2]) if k != '--'+name.replace('_', '-') for o in (k, v)]
    refused(capsys, '--config', 'run.toml', '--ranker', 'confidence', '--out', 'out', start=start, says=says)

@pytest.mark.parametrize('args', [['--seeds', '3'], ['--data'], ['stray'], ['--lr', '--seed', '3']])
def test_a_bad_command_line_is_refused(args, here, capsys): refused(capsys, *args, says=args[0])

# The module's name differs from case to case: Python imports a name once.
@pytest.mark.parametrize('how', ['ours', 'torchs'])
def test_nan_in_the_data_is_refused(how, here, capsys):
    (here/f'nan_{how}.py').write_text(module.replace('DOES', f'{nan}\n    {globals()[how]}'), encoding='utf-8')
    refused(capsys, '--data', f'nan_{how}:loaders', '--groups', 1, says='NaN', start=own)

wrong = dict(
    bytes_as_inputs=('a[0] = (9*a[0]).byte(); ' + ours, 'uint8'),
    matrices=('a[0], b[0], c[0] = (torch.rand(len(o[1]), 8, 8) for o in (a, b, c)); ' + ours, '(8, 8)'),
    one_hot=('a[1] = torch.eye(2)[a[1]]; ' + ours, 'argmax'),
    regression=('a[1] = a[1] + .5; ' + ours, 'regression'),
    minus_one=('a[1] = 2*a[1] - 1; ' + ours, 'from 0'),
    doubles=('a[0], b[0], c[0] = a[0].double(), b[0].double(), c[0].double(); ' + torchs, 'float64'),
    floats=('a[1] = a[1].float(); ' + torchs, 'y.long()'))
@pytest.mark.parametrize('name', wrong)
def test_unsuitable_data_are_refused(name, here, capsys):
    body, says = wrong[name]
    (here/f'{name}.py').write_text(module.replace('DOES', body), encoding='utf-8')
    refused(capsys, '--data', f'{name}:loaders', '--groups', 1, says=says, start=own)

@pytest.mark.parametrize('name, body', [('a_number', 'return 3'), ('nothing', 'pass'), ('one_loader', ours + '.train')])
def test_a_function_that_returns_no_loaders_is_refused(name, body, here, capsys):
    (here/f'{name}.py').write_text(module.replace('DOES', body), encoding='utf-8')
    refused(capsys, '--data', f'{name}:loaders', says=('DataLoaders', f'{name}:loaders'), start=own)

def test_n_is_refused_for_data_of_a_user_module(here, capsys):
    (here/'all_of_it.py').write_text(module.replace('DOES', ours), encoding='utf-8')
    refused(capsys, '--data', 'all_of_it:loaders', '--n', 50, '--groups', 1, says='--n 50')

@pytest.mark.parametrize('name', ['nowhere:loaders', 'math:loaders', 'nowhere.at.all:f', ':f', 'math:', '.math:f',
                                  'math:pi'])
def test_a_data_function_that_does_not_exist_is_refused(name, here, capsys):
    refused(capsys, '--data', name, says=f"'{name}'")

def test_an_output_folder_below_a_file_is_refused(here, capsys):
    (here/'file').write_text('', encoding='utf-8')
    for out in ('file', 'file/out'): refused(capsys, '--out', out, says=f"'{out}'")
    assert (here/'file').read_text(encoding='utf-8') == ''

@pytest.mark.parametrize('text', ['', '{', '[]', '3', '{}', '{"settings": 3}', '{"settings": {"data": "digits"}}',
                                  '{"name": "another program"}'])
def test_a_folder_with_a_foreign_run_json_is_refused(text, here, capsys):
    (here/'run').mkdir()
    (here/'run'/'run.json').write_text(text, encoding='utf-8')
    before = state(here/'run')
    refused(capsys, '--out', 'run', says="run")
    assert state(here/'run') == before

def test_a_failed_download_is_one_sentence(tmp_path):
    # a proxy on a closed port fails at once, as a missing network does
    (tmp_path/'empty').mkdir()
    closed = {k: 'http://127.0.0.1:9' for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy')}
    env = {**os.environ, **closed, 'RSU_DATA': str(tmp_path/'empty'), 'no_proxy': '', 'NO_PROXY': ''}
    done = shell('run', *quick, '--data', 'fashion_mnist', cwd=tmp_path, env=env)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'RSU_DATA' in done.stderr
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('command', [(rsu,), (sys.executable, '-m', 'rsu')], ids=['rsu', 'python -m rsu'])
def test_a_refusal_from_a_shell(command, tmp_path):
    # the other tests call the command's function in this process
    done = shell('run', *quick, '--ranker', 'lyra', cwd=tmp_path, command=command)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == "rsu: There is no ranker called 'lyra': did you mean 'lira'?\n"
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('line, says', [
    ('rank --forget random:0', 'empty'), ('rank --forget ids.csv', 'ids.csv'),
    ('rank --by person', "no column 'person'"),
    ('rank --top 0', '--top 0'), ('rank --references 3', '--references 3'), ('rank --ranker lyra', "'lira'"),
    ('rank --model math:pi', "'math:pi' is given without weights"), ('rank --bank nowhere', "no bank in 'nowhere'"),
    ('rank --bank nowhere --ranker confidence', 'does not use a reference bank'),
    ('rank --weights gone.safetensors', 'gone.safetensors'),
    ('rank --weights gone.safetensors --ranker el2n', 'a record of the training'),
    ('evaluate --forget random:12 --weights gone.safetensors --unlearned new.safetensors', 'gone.safetensors'),
    ('evaluate --forget top:12 --weights a.safetensors --unlearned b.safetensors', 'top:'),
    ('evaluate --forget random:12 --oracles 1 --weights a.safetensors --unlearned b.safetensors', '--oracles 1'),
    ('evaluate --forget random:12 --weights a.safetensors', '--unlearned')])
def test_bad_options_of_rank_and_evaluate_are_refused(line, says, here, capsys):
    assert call(*line.split(), '--data', 'digits', '--n', '300', '--out', 'out') == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and says in err and not os.path.lexists('out'), err

@pytest.mark.parametrize('make', [lambda o: None, lambda o: o.mkdir(), lambda o: o.write_text('{}', encoding='utf-8')],
                         ids=['missing', 'empty', 'file'])
def test_information_on_another_folder_is_refused(make, here, capsys):
    make(here/'other')
    assert call('info', 'other') == 2
    assert "'other' is not a folder that rsu wrote" in capsys.readouterr().err
