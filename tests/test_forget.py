"An erasure request from a shell: what it leaves, what it does not, killed and taken up again, and refused."
import json, re, subprocess, sys, time
from pathlib import Path

import pandas as pd, pytest, torch
from common import people, request, rsu, shell
from rsu.app.cli import main
from rsu.erasure.ledger import Ledger
from rsu.core.recipe import Recipe, mlp
from rsu.core.store import read_shard
from rsu.ranking.bank import ReferenceBank
from rsu.core.config import InputError
from safetensors.torch import save_file

module = '''
import pandas as pd, torch
from rsu.core.data import Samples, loaders as make
from rsu.core.recipe import mlp

def loaders():
    g = torch.Generator().manual_seed(0)
    part = lambda n: (torch.randn(n, 4, generator=g), torch.arange(n) % 2)
    persons = pd.DataFrame({'person': [f'patient-{i//2}' for i in range(1200)]})
    return make(Samples(*part(1200), frame=persons), Samples(*part(80)), Samples(*part(80)))

def network(): return mlp(4, 2)

def table(): return pd.DataFrame()
'''

@pytest.fixture(scope='session')
def clinic(tmp_path_factory):
    "A folder with a user's module, the weights of a model, and a bank of it. Nobody writes into it."
    home = tmp_path_factory.mktemp('clinic')
    (home/'clinic_data.py').write_text(module, encoding='utf-8')
    sys.path.insert(0, str(home))
    from clinic_data import loaders
    sys.path.remove(str(home))
    learn = Recipe(mlp, n_epoch=5, lr=.01).fit(loaders(), quiet=True)
    save_file({k: v.contiguous() for k, v in learn.model.state_dict().items()}, home/'clinic.safetensors')
    ReferenceBank.fit(learn, n=4, path=home/'bank', quiet=True)
    return home

@pytest.fixture
def here(clinic, here):
    import shutil
    shutil.copytree(clinic, here, dirs_exist_ok=True)
    sys.modules.pop('clinic_data', None)
    sys.path.insert(0, str(here)) # which `here` takes off again
    yield here
    sys.modules.pop('clinic_data', None)

ask = 'forget --data clinic_data:loaders --model clinic_data:network --weights clinic.safetensors --by person --algorithm neggradplus --n-epoch 4 --lr .01'.split()

@pytest.fixture
def call(monkeypatch):
    "`rsu` in this process, without the report; its exit code."
    monkeypatch.setattr('rsu.app.pipeline.write_page', lambda out, request: Path(out)/f'report-{request:04}.html')
    def run(*args):
        try: main([*ask, *map(str, args)])
        except SystemExit as e: return e.code
        return 0
    return run

def entries(out='out'): return json.loads((Path(out)/'ledger.json').read_text(encoding='utf-8'))['entries']

def weights(out='out'): return read_shard(Path(out)/f'model-{len(entries(out)):04}.safetensors')[0]

def assert_same(a, b): assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def test_from_a_shell(here):
    done = shell(*ask, *request('patient-3', 'patient-41'), '--bank', 'bank', '--out', 'out', cwd=here)
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.endswith('Report: out/report-0001.html\n')
    there = {p.name for p in (here/'out').iterdir() if p.suffix != '.lock'}
    assert there == {'ledger.json', 'model-0001.safetensors', 'report-0001.html', 'report-0001.ipynb'}
    one, = entries()
    assert (one['n'], len(one['ids'])) == (4, 2) and one['steps'] > 0 and 'drift' in one
    old = read_shard_plain('clinic.safetensors')
    assert weights().keys() == old.keys() and not all(torch.equal(weights()[k], old[k]) for k in old)
    page = (here/'out'/'report-0001.html').read_text(encoding='utf-8')
    assert 'Erasure report' in page and 'not a legal certificate' in page and one['ids'][0] in page

def read_shard_plain(path):
    from safetensors.torch import load_file
    return load_file(path)

def test_nothing_that_is_written_names_a_person_or_holds_a_sample(here, call):
    names = ['patient-3', 'patient-41', 'patient-77']
    more = ['--bank', 'bank', '--purge', '--groups', '2', '--out', 'out']
    assert call(*request(*names[:2]), *more) == 0 and shell(*ask, *request(*names[2:]), *more, cwd=here).returncode == 0 # the latter with its report
    (here/'erase.csv').unlink() # the request itself
    from clinic_data import loaders
    ds = loaders().train_ds
    at = [i for i, o in enumerate(ds.frame.person) if o in names]
    needles = [o.encode() for o in names] + [ds.tensors[0][i].numpy().astype(k).tobytes() for i in at for k in ('f4', 'f8')]
    files = [p for p in here.rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    assert [(p.name, o) for p in files for o in needles if o in p.read_bytes()] == []
    assert not (here/'clinic.safetensors').exists() and {'ledger.json', 'report-0002.html'} < {p.name for p in files}

def test_the_same_request_again_changes_nothing(here, call, capsys):
    assert call(*request('patient-5'), '--out', 'out') == 0
    before = (here/'out'/'ledger.json').read_bytes(), (here/'out'/'model-0001.safetensors').read_bytes()
    assert call(*request('patient-5'), '--out', 'out') == 0
    assert 'answered before' in capsys.readouterr().out
    assert before == ((here/'out'/'ledger.json').read_bytes(), (here/'out'/'model-0001.safetensors').read_bytes())

def test_rows_that_were_deleted_are_answered_still(here, call, capsys):
    assert call(*request('patient-5'), '--out', 'out') == 0
    text = (here/'clinic_data.py').read_text(encoding='utf-8')
    (here/'clinic_data.py').write_text(text.replace('return make(Samples(*part(1200), frame=persons)',
        "x, y = part(1200); keep = [i for i, o in enumerate(persons.person) if o != 'patient-5']; "
        "return make(Samples(x[keep], y[keep], frame=persons.iloc[keep])"), encoding='utf-8')
    sys.modules.pop('clinic_data', None)
    capsys.readouterr()
    assert call(*request('patient-5'), '--out', 'out') == 0 and 'answered before' in capsys.readouterr().out
    assert call(*request('patient-6'), '--out', 'out') == 0 and [e['n'] for e in entries()] == [2, 2]

def test_the_folder_goes_on_without_the_old_weights(here, call):
    assert call(*request('patient-5'), '--purge', '--out', 'out') == 0
    assert not (here/'clinic.safetensors').exists()
    assert call(*request('patient-6'), '--out', 'out') == 0 and len(entries()) == 2

def test_killed_and_taken_up_again(here, call):
    assert call(*request('patient-5', *(f'patient-{i}' for i in range(60, 80))), '--groups', '3', '--n-epoch', '20', '--out', 'whole') == 0
    command = [rsu, *ask, *request('patient-5', *(f'patient-{i}' for i in range(60, 80))), '--groups', '3', '--n-epoch', '20', '--out', 'out']
    run = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           encoding='utf-8')
    limit = time.monotonic() + 120
    while not list(here.glob('out/work-*/stages.safetensors')):
        assert run.poll() is None and time.monotonic() < limit, 'it was not caught inside the request'
        time.sleep(.002)
    run.kill(); run.communicate()
    assert not entries() and not list((here/'out').glob('model-*'))
    assert call(*request('patient-5', *(f'patient-{i}' for i in range(60, 80))), '--groups', '3', '--n-epoch', '20', '--out', 'out') == 0
    assert_same(weights('out'), weights('whole'))
    assert not list((here/'out').glob('work-*'))

watched = '''
import json, sys
from fastai.callback.core import Callback
from rsu.all import *
from clinic_data import loaders, network
from safetensors.torch import load_file
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat

class Watch(Callback):
    run_valid, fed = False, dict(forget=set(), retain=set())
    def before_batch(self):
        for role, (at, _) in self.learn.dls.train.now.items(): self.fed[role] |= set(at.tolist())

learn = Learner(loaders(), network(), CrossEntropyLossFlat())
learn.model.load_state_dict(load_file('clinic.safetensors'))
how = lambda split: SeqUnlearn(NegGradPlus(n_epoch=2, lr=.001, bs=64), min(2, len(split)), pending='retain')
learn.unlearn_stream([sys.argv[1:]], how, Ledger('watched', by='person'), Confidence(), cbs=Watch(), quiet=True)
print(json.dumps({k: sorted(v) for k, v in Watch.fed.items()}))
'''

def test_no_process_trains_on_what_another_forgot(here):
    # each request in a process of its own, the same learner given to each; what the batches hold is what counts
    (here/'watched.py').write_text(watched, encoding='utf-8')
    from clinic_data import loaders
    persons, gone = loaders().train_ds.frame.person.tolist(), set()
    for names in (['patient-1', 'patient-2', 'patient-3'], ['patient-3', 'patient-50'], ['patient-51']):
        done = subprocess.run([sys.executable, 'watched.py', *names], cwd=here, capture_output=True, text=True,
                              timeout=300, encoding='utf-8')
        assert done.returncode == 0, done.stderr
        fed = json.loads(done.stdout.strip().split('\n')[-1])
        new = {i for i, o in enumerate(persons) if o in names} - gone
        assert set(fed['forget']) == new and not set(fed['retain']) & gone
        gone |= new
    assert {persons[i] for i in gone} == {'patient-1', 'patient-2', 'patient-3', 'patient-50', 'patient-51'}

def halved(path): path.write_bytes(path.read_bytes()[:99])

@pytest.mark.parametrize('change, says', [
    (['--weights', 'gone.safetensors'], 'gone.safetensors'), (['--model', 'clinic_data:table'], 'DataFrame'), (['--model', 'clinic_data:nothing'], 'clinic_data:nothing'), (['--model', 'rsu.core.recipe:mlp'], 'not those of this network'),
    (['--by', 'patient'], "no column 'patient'"), (['--forget', 'top:5'], 'top:'), (['--oracles', '1'], '--oracles 1 cannot'), (['--algorithm', 'scrab'], "'scrub'"), (['--groups', '2', '--ranker', 'lira'], '--bank'),
    (['--bank', 'nowhere'], 'nowhere'), (['--lr', '0'], '--lr 0.0 must be a number'),
    (['--algorithm', 'none'], "'none' forgets nothing"), (['--algorithm', 'scrub,none', '--groups', '2'], "'none' forgets nothing"),
    (['--removed', 'clinic.safetensors'], 'which contains: nothing'), (['--until', '2'], '--until 2.0 must be a number in [0, 1]'),
    (['--groups', 'at:1,2'], 'The thresholds 1.0, 2.0 do not fall'), (['--oracles', '2'], 'set its attribute recipe to a Recipe')])
def test_refused_in_one_sentence(change, says, here, call, capsys):
    assert call(*request('patient-5'), '--out', 'out', *change) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and err.startswith('rsu: ') and says in err and not re.search(r'\w=', err)
    assert not (here/'out').exists() or not entries()

def test_weights_cut_short_and_unknown_persons(here, call, capsys):
    assert call(*request('nobody'), '--out', 'out') == 2 and "'nobody'" in capsys.readouterr().err and not (here/'out').exists()
    halved(here/'clinic.safetensors')
    assert call(*request('patient-5'), '--out', 'out') == 2 and 'clinic.safetensors' in capsys.readouterr().err
    assert call('--out', 'out') == 2 and '--forget' in capsys.readouterr().err

def test_what_changed_nothing_is_no_answer(here, call, capsys):
    # the fit diverges and the old weights are put back: no entry, nothing is purged, and the request can be made again
    assert call(*request('patient-5'), '--algorithm', 'gradascent', '--lr', '1e12', '--purge', '--out', 'out') == 2
    assert 'changed nothing (it ended: diverged)' in capsys.readouterr().err and (here/'clinic.safetensors').exists()
    assert not (here/'out').exists() and not (here/'out.key').exists()
    assert call(*request('patient-5'), '--out', 'out') == 0 and len(entries()) == 1

def test_a_refused_request_binds_nothing(here, call, capsys):
    from clinic_data import network
    save_file(network().state_dict(), here/'other.safetensors')
    assert call(*request('patient-5'), '--weights', 'other.safetensors', '--algorithm', 'unsir', '--out', 'out') == 2
    (here/'at.csv').write_text('id\n7\n', encoding='utf-8')
    command = [o for o in ask if o not in ('--by', 'person')]
    try: main([*command, '--forget', 'at.csv', '--algorithm', 'unsir', '--out', 'out'])
    except SystemExit as e: assert e.code == 2
    assert call(*request('patient-5'), '--purge', '--out', 'out') == 0 and len(entries()) == 1
    assert not (here/'clinic.safetensors').exists() and (here/'other.safetensors').exists() # which this model was not made from

def test_whose_samples_are_asked_for_by_value(here, call, capsys):
    assert call('--forget', 'class:1', '--out', 'out') == 2
    assert 'give a .csv of values of person' in capsys.readouterr().err and not (here/'out').exists()

def test_ids_of_several_kinds(tmp_path):
    dls = Recipe(mlp).learner(people([4, '4b', 'x'])).dls
    ledger = Ledger(tmp_path, by='who')
    ledger.add(dls, [0, 3])
    assert ledger.forgotten(dls).tolist() == [True, False, False]*10 and len(ledger.entries[0]['ids']) == 1

def test_ids_that_read_alike_are_refused(tmp_path):
    with pytest.raises(InputError, match="'1017' and 1017 are two ids with the same text"):
        Ledger(tmp_path/'a', by='who').forgotten(people([1017, '1017', 'x']))
    assert not Ledger(tmp_path/'b', by='who').forgotten(people([None, 'None', 'x'])).any() # nobody, and one of that name

def test_values_of_a_column_are_not_taken_for_positions(here, call, capsys):
    pd.DataFrame({'person': ['patient-5']}).to_csv('erase.csv', index=False)
    without = [o for o in ask if o not in ('--by', 'person')]
    with pytest.raises(SystemExit): main([*without, '--forget', 'erase.csv', '--out', 'out'])
    assert 'give --by person if the file lists its values' in capsys.readouterr().err and not (here/'out').exists()

def test_keys_are_named_by_their_option(here, call, capsys):
    assert call(*request('patient-5'), '--out', 'out') == 0
    (here/'out.key').rename(here/'other.key')
    assert call(*request('patient-6'), '--out', 'out') == 2
    assert 'give the key that it was made with, --key FILE.' in capsys.readouterr().err
    assert call(*request('patient-6'), '--key', 'other.key', '--out', 'out') == 0

torch_data = '''
import torch
from torch.utils.data import DataLoader, TensorDataset
from clinic_data import loaders

def parts(n=3):
    sets = [TensorDataset(*o.tensors) for o in (loaders().train_ds, loaders().valid_ds, loaders().loaders[2].dataset)]
    return tuple(DataLoader(o, batch_size=64, shuffle=not i) for i, o in enumerate(sets))[:n]

def two(): return parts(2)
def one(): return parts(1)
def sets(): return parts()[0].dataset, 3
'''

def test_data_as_loaders_of_pytorch(here, call, capsys):
    (here/'torch_data.py').write_text(torch_data, encoding='utf-8')
    (here/'at.csv').write_text('id\n7\n8\n', encoding='utf-8')
    plain = [o for o in ask if o not in ('--by', 'person', 'clinic_data:loaders', '--data')]
    def answer(data, out):
        try: main([*plain, '--data', f'torch_data:{data}', '--forget', 'at.csv', '--out', out])
        except SystemExit as e: return e.code
        return 0
    assert answer('parts', 'three') in (0, 3) and entries('three')[0]['n'] == 2
    assert answer('two', 'two') in (0, 3) and 'There is no test loader' in capsys.readouterr().out
    assert answer('one', 'one') == 2 and 'There is no validation loader' in capsys.readouterr().err
    assert answer('sets', 'sets') == 2
    assert "What 'torch_data:sets' returned has a TensorDataset where a loader is wanted" in capsys.readouterr().err
