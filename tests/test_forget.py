"`rsu forget`: the files that a request leaves, killed and resumed requests, and refused ones."
import json, re, shutil, sys
from functools import partial
from pathlib import Path

import pandas as pd, pytest, torch
from common import clinic_request, ended, forked, people, request, shell, start, wait_until
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from rsu.all import Confidence, NegGradPlus, SeqUnlearn
from rsu.erasure.ledger import Ledger
from rsu.core.recipe import Recipe, mlp
from rsu.core.store import read_shard
from rsu.core.config import InputError
from safetensors.torch import load_file, save_file

@pytest.fixture
def here(in_clinic): return in_clinic

@pytest.fixture
def call(no_page): return partial(no_page, *clinic_request)

def entries(out='out'): return json.loads((Path(out)/'ledger.json').read_text(encoding='utf-8'))['entries']

def weights(out='out'): return read_shard(Path(out)/f'model-{len(entries(out)):04}.safetensors')[0]

def assert_same(a, b): assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

options = ['--bank', 'bank', '--purge', '--groups', '2', '--out', 'out']

@pytest.fixture(scope='module')
def answered(clinic, tmp_path_factory):
    "A folder after a request for two persons, and the finished shell. No test may write into the folder."
    folder = tmp_path_factory.mktemp('answered')/'clinic'
    shutil.copytree(clinic, folder)
    asked = request('patient-3', 'patient-41', file=folder/'erase.csv')
    return folder, shell(*clinic_request, *asked, *options, cwd=folder)

def test_a_request_from_a_shell(answered, clinic):
    folder, done = answered
    out = folder/'out'
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.endswith('Report: out/report-0001.html\n')
    files = {p.name for p in out.iterdir() if p.suffix != '.lock'}
    assert files == {'ledger.json', 'model-0001.safetensors', 'report-0001.html', 'report-0001.ipynb'}
    one, = entries(out)
    assert (one['n'], len(one['ids'])) == (4, 2) and one['steps'] > 0 and 'drift' in one
    old, new = load_file(clinic/'clinic.safetensors'), weights(out)
    assert new.keys() == old.keys() and not all(torch.equal(new[k], old[k]) for k in old)
    page = (out/'report-0001.html').read_text(encoding='utf-8')
    assert 'Erasure report' in page and 'not a legal certificate' in page and one['ids'][0] in page

def test_no_file_contains_a_persons_name_or_samples(answered, here, call):
    (here/'clinic.safetensors').unlink()
    shutil.rmtree(here/'bank')
    shutil.copytree(answered[0], here, dirs_exist_ok=True) # in which both were purged
    names = ['patient-3', 'patient-41', 'patient-77']
    assert call(*request(*names[2:]), '--out', 'out') == 0
    (here/'erase.csv').unlink()
    from clinic_data import loaders
    ds = loaders().train_ds
    rows = [ds.tensors[0][i].numpy() for i, o in enumerate(ds.frame.person) if o in names]
    secrets = [o.encode() for o in names] + [row.astype(k).tobytes() for row in rows for k in ('f4', 'f8')]
    files = [p for p in here.rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    assert [(p.name, o) for p in files for o in secrets if o in p.read_bytes()] == []
    assert not (here/'clinic.safetensors').exists()
    assert {'ledger.json', 'report-0001.html', 'report-0002.html'} < {p.name for p in files}

def test_the_same_request_again_changes_nothing(here, call, capsys):
    assert call(*request('patient-5'), '--out', 'out') == 0
    before = (here/'out'/'ledger.json').read_bytes(), (here/'out'/'model-0001.safetensors').read_bytes()
    assert call(*request('patient-5'), '--out', 'out') == 0
    assert 'answered before' in capsys.readouterr().out
    assert before == ((here/'out'/'ledger.json').read_bytes(), (here/'out'/'model-0001.safetensors').read_bytes())

def test_a_request_is_still_answered_after_its_rows_were_deleted(here, call, capsys):
    assert call(*request('patient-5'), '--out', 'out') == 0
    text = (here/'clinic_data.py').read_text(encoding='utf-8')
    (here/'clinic_data.py').write_text(text.replace('return make(Samples(*part(1200), frame=persons)',
        "x, y = part(1200); keep = [i for i, o in enumerate(persons.person) if o != 'patient-5']; "
        "return make(Samples(x[keep], y[keep], frame=persons.iloc[keep])"), encoding='utf-8')
    sys.modules.pop('clinic_data', None)
    capsys.readouterr()
    assert call(*request('patient-5'), '--out', 'out') == 0 and 'answered before' in capsys.readouterr().out
    assert call(*request('patient-6'), '--out', 'out') == 0 and [e['n'] for e in entries()] == [2, 2]

def test_later_requests_need_no_old_weights(here, call):
    assert call(*request('patient-5'), '--purge', '--out', 'out') == 0
    assert not (here/'clinic.safetensors').exists()
    assert call(*request('patient-6'), '--out', 'out') == 0 and len(entries()) == 2

def test_a_killed_request_can_be_resumed(here, call):
    persons = request('patient-5', *(f'patient-{i}' for i in range(60, 80)))
    long = [*persons, '--groups', '3', '--n-epoch', '20', '--out']
    assert call(*long, 'whole') == 0
    run = start(*clinic_request, *long, 'out', cwd=here)
    wait_until(lambda: list(here.glob('out/work-*/stages.safetensors')), run)
    run.kill()
    run.join()
    assert not entries() and not list((here/'out').glob('model-*'))
    assert call(*long, 'out') == 0
    assert_same(weights('out'), weights('whole'))
    assert not list((here/'out').glob('work-*'))

class Watch(Callback):
    "Notes the samples of all batches, by role"
    run_valid = False
    def __init__(self): self.fed = dict(forget=set(), retain=set())
    def before_batch(self):
        for role, (at, _) in self.learn.dls.train.now.items(): self.fed[role] |= set(at.tolist())

def answer(names):
    "Answer a request, and print the samples that were in batches"
    from clinic_data import loaders, network
    learn, watch = Learner(loaders(), network(), CrossEntropyLossFlat()), Watch()
    learn.model.load_state_dict(load_file('clinic.safetensors'))
    def how(split): return SeqUnlearn(NegGradPlus(n_epoch=2, lr=.001, bs=64), min(2, len(split)), pending='retain')
    learn.unlearn_stream([names], how, Ledger('watched', by='person'), Confidence(), cbs=watch, quiet=True)
    print(json.dumps({k: sorted(v) for k, v in watch.fed.items()}))

def test_no_process_trains_on_samples_that_another_one_forgot(here):
    # each request in a process of its own that starts from the same learner
    from clinic_data import loaders
    persons, gone = loaders().train_ds.frame.person.tolist(), set()
    for names in (['patient-1', 'patient-2', 'patient-3'], ['patient-3', 'patient-50'], ['patient-51']):
        assert ended(forked(answer, names, cwd=here)) == 0
        fed = json.loads((here/'log.txt').read_text(encoding='utf-8').splitlines()[-1])
        new = {i for i, o in enumerate(persons) if o in names} - gone
        assert set(fed['forget']) == new and not set(fed['retain']) & gone
        gone |= new
    assert {persons[i] for i in gone} == {'patient-1', 'patient-2', 'patient-3', 'patient-50', 'patient-51'}

def halved(path): path.write_bytes(path.read_bytes()[:99])

@pytest.mark.parametrize('change, words', [
    (['--weights', 'gone.safetensors'], 'gone.safetensors'), (['--model', 'clinic_data:table'], 'DataFrame'),
    (['--model', 'clinic_data:nothing'], 'clinic_data:nothing'),
    (['--model', 'rsu.core.recipe:mlp'], 'not those of this network'), (['--by', 'patient'], "no column 'patient'"),
    (['--forget', 'top:5'], 'top:'), (['--forget', 'mislabelled:5'], 'mislabelled:'),
    (['--oracles', '1'], '--oracles 1 cannot'), (['--algorithm', 'scrab'], "'scrub'"),
    (['--groups', '2', '--ranker', 'lira'], '--bank'),
    (['--bank', 'nowhere'], 'nowhere'), (['--lr', '0'], '--lr 0.0 must be a number'),
    (['--algorithm', 'none'], "'none' forgets nothing"),
    (['--algorithm', 'scrub,none', '--groups', '2'], "'none' forgets nothing"),
    (['--removed', 'clinic.safetensors'], 'which contains: nothing'),
    (['--until', '2'], '--until 2.0 must be a number in [0, 1]'),
    (['--groups', 'at:1,2'], 'The thresholds 1.0, 2.0 do not fall'),
    (['--oracles', '2'], 'or set its attribute recipe; train is a function')])
def test_bad_options_are_refused_in_one_sentence(change, words, here, call, capsys):
    assert call(*request('patient-5'), '--out', 'out', *change) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and err.startswith('rsu: ') and words in err and not re.search(r'\w=', err)
    assert not (here/'out').exists() or not entries()

def test_damaged_weights_and_unknown_persons_are_refused(here, call, capsys):
    assert call(*request('nobody'), '--out', 'out') == 2
    assert "'nobody'" in capsys.readouterr().err and not (here/'out').exists()
    halved(here/'clinic.safetensors')
    assert call(*request('patient-5'), '--out', 'out') == 2 and 'clinic.safetensors' in capsys.readouterr().err
    assert call('--out', 'out') == 2 and '--forget' in capsys.readouterr().err

def test_a_diverged_request_is_not_answered(here, call, capsys):
    # the fit diverges and the old weights are restored: no entry, nothing is purged, the request can be repeated
    assert call(*request('patient-5'), '--algorithm', 'gradascent', '--lr', '1e12', '--purge', '--out', 'out') == 2
    assert 'changed nothing (it ended: diverged)' in capsys.readouterr().err and (here/'clinic.safetensors').exists()
    assert not (here/'out').exists() and not (here/'out.key').exists()
    assert call(*request('patient-5'), '--out', 'out') == 0 and len(entries()) == 1

def test_a_refused_request_leaves_the_folder_free_for_others(here, call, no_page):
    from clinic_data import network
    save_file(network().state_dict(), here/'other.safetensors')
    assert call(*request('patient-5'), '--weights', 'other.safetensors', '--algorithm', 'unsir', '--out', 'out') == 2
    (here/'at.csv').write_text('id\n7\n', encoding='utf-8')
    by_position = [o for o in clinic_request if o not in ('--by', 'person')]
    assert no_page(*by_position, '--forget', 'at.csv', '--algorithm', 'unsir', '--out', 'out') == 2
    assert call(*request('patient-5'), '--purge', '--out', 'out') == 0 and len(entries()) == 1
    # only the weights that the model was made from are purged
    assert not (here/'clinic.safetensors').exists() and (here/'other.safetensors').exists()

def test_a_class_is_refused_where_ids_are_required(here, call, capsys):
    assert call('--forget', 'class:1', '--out', 'out') == 2
    assert 'give a .csv of values of person' in capsys.readouterr().err and not (here/'out').exists()

def test_a_column_may_mix_numbers_and_strings(tmp_path):
    dls = Recipe(mlp).learner(people([4, '4b', 'x'])).dls
    ledger = Ledger(tmp_path, by='who')
    ledger.add(dls, [0, 3])
    assert ledger.forgotten(dls).tolist() == [True, False, False]*10 and len(ledger.entries[0]['ids']) == 1

def test_ids_that_differ_only_in_type_are_refused(tmp_path):
    with pytest.raises(InputError, match="'1017' and 1017 are two ids with the same text"):
        Ledger(tmp_path/'a', by='who').forgotten(people([1017, '1017', 'x']))
    # a missing id, and a person of the name 'None'
    assert not Ledger(tmp_path/'b', by='who').forgotten(people([None, 'None', 'x'])).any()

def test_ids_without_by_are_refused(here, no_page, capsys):
    pd.DataFrame({'person': ['patient-5']}).to_csv('erase.csv', index=False)
    without = [o for o in clinic_request if o not in ('--by', 'person')]
    assert no_page(*without, '--forget', 'erase.csv', '--out', 'out') == 2
    assert 'give --by person if the file lists its values' in capsys.readouterr().err and not (here/'out').exists()

def test_a_missing_key_is_reported_with_its_option(here, call, capsys):
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

def test_data_may_be_pytorch_loaders(here, no_page, capsys):
    (here/'torch_data.py').write_text(torch_data, encoding='utf-8')
    (here/'at.csv').write_text('id\n7\n8\n', encoding='utf-8')
    plain = [o for o in clinic_request if o not in ('--by', 'person', 'clinic_data:loaders', '--data')]
    def request_on(data, out):
        return no_page(*plain, '--data', f'torch_data:{data}', '--forget', 'at.csv', '--out', out)
    assert request_on('parts', 'three') in (0, 3) and entries('three')[0]['n'] == 2
    assert request_on('two', 'two') in (0, 3) and 'There is no test loader' in capsys.readouterr().out
    assert request_on('one', 'one') == 2 and 'There is no validation loader' in capsys.readouterr().err
    assert request_on('sets', 'sets') == 2
    assert "What 'torch_data:sets' returned has a TensorDataset where a loader is wanted" in capsys.readouterr().err
