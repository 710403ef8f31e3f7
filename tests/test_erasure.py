"Erasure requests remove only their own files, survive crashes and changed files, and do not reveal who was erased."
import hashlib, json, os, random, secrets, shutil, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from common import call as exit_code, make_clinic, request
from filelock import FileLock
from rsu.algorithms.ascent import NegGradPlus
from rsu.core.outputs import margin

from rsu.core.store import read_shard
from rsu.core.indexing import fingerprint
from rsu.core.outputs import predict_train
from rsu.core.split import ForgetSplit
from rsu.algorithms.exact import Retrain
from rsu.erasure.ledger import Ledger
from rsu.erasure.report import _result
from rsu.core.recipe import derive_seed
from rsu.algorithms.unlearn import _Progress
from safetensors.torch import load_file

@pytest.fixture(scope='session')
def clinic(tmp_path_factory):
    return make_clinic(tmp_path_factory.mktemp('clinic'), n_train=120, n_valid=40, bs=32, n_epoch=4, n_references=2,
                       recipe_epochs=1)

@pytest.fixture
def here(in_clinic): return in_clinic

base = 'forget --data clinic_data:loaders --model clinic_data:learner --by person'.split()
ask = [*base, *'--weights clinic.safetensors --algorithm retrain'.split()] # which closes a request for any samples
descent = [*base, *'--weights clinic.safetensors --algorithm neggradplus --n-epoch 2 --lr .02'.split()]

@pytest.fixture
def call(no_page): return no_page

def ledger_of(out): return json.loads((Path(out)/'ledger.json').read_text(encoding='utf-8'))

def names(folder): return sorted(o.name for o in Path(folder).iterdir() if o.suffix != '.lock')

# Only files of the ledger are removed

mine = {'model-card.md': 'card', 'model-zoo/net.safetensors': 'net',
        'work-notes/today.txt': 'notes', 'work-0123456789ab/x': 'x',
        'model-9999.safetensors': 'mine', 'ledger-copy.json': '{}',
        'ledger.json.bak': '{}', 'model-0001.safetensors.old': 'old',
        'stages.safetensors': 'mine', 'oracles-0001/oracle.safetensors': 'mine',
        'reference-1.txt': 'mine', 'ledger.12.part2': 'mine',
        'report.html': 'mine', 'report-0004.html': 'mine', 'report-0001.htm': 'mine'}

def test_files_with_similar_names_are_not_removed(here, call):
    for name, text in mine.items():
        (here/name).parent.mkdir(exist_ok=True)
        (here/name).write_text(text, encoding='utf-8')
    for who in ('patient-3', 'patient-4', 'patient-5'):
        assert call(*ask, *request(who), '--bank', 'bank', '--oracles', '2', '--purge',
                    '--out', '.', '--key', '../my.key') == 0
    assert {k: (here/k).read_text(encoding='utf-8') for k in mine} == mine
    assert {'ledger.json', 'model-0003.safetensors'} <= {*names(here)}
    assert not {'model-0001.safetensors', 'model-0002.safetensors'} & {*names(here)}
    assert not (here/'clinic.safetensors').exists() and not (here/'bank').exists() # the noted copies are purged

def test_weights_in_the_ledgers_folder_are_removed_only_by_purge(here, call):
    (here/'own').mkdir()
    (here/'clinic.safetensors').rename(here/'own'/'model-final.safetensors')
    weights, pages = ['--weights', 'own/model-final.safetensors'], ['report-0001.html', 'report-0002.html']
    for who in ('patient-3', 'patient-4'): assert call(*ask, *weights, *request(who), '--out', 'own') == 0
    assert names('own') == ['ledger.json', 'model-0002.safetensors', 'model-final.safetensors', *pages]
    assert call(*ask, *weights, *request('patient-4'), '--purge', '--out', 'own') == 0
    assert names('own') == ['ledger.json', 'model-0002.safetensors', *pages]

def test_a_users_file_is_not_overwritten_by_new_weights(here, call, capsys):
    (here/'out').mkdir()
    (here/'out'/'model-0001.safetensors').write_text('mine', encoding='utf-8')
    assert call(*ask, *request('patient-3'), '--out', 'out') == 2
    assert "exists and does not belong to this ledger" in capsys.readouterr().err
    assert names('out') == ['model-0001.safetensors']
    assert (here/'out'/'model-0001.safetensors').read_text(encoding='utf-8') == 'mine'

def page(k, out='out'): return (Path(out)/f'report-{k:04}.html').read_text(encoding='utf-8')

def test_each_request_has_its_own_page(here, call, capsys):
    for who in ('patient-3', 'patient-4'): assert call(*ask, *request(who), '--out', 'out') == 0
    assert (page(1), page(2)) == ('page 0', 'page 1')
    assert call(*ask, *request('patient-3'), '--out', 'out') == 0
    assert capsys.readouterr().out.endswith('Report: out/report-0001.html\n')
    assert (page(1), page(2)) == ('page 2', 'page 1')
    assert call(*ask, *request('patient-4'), '--oracles', '2', '--out', 'out') == 0
    assert (page(1), page(2)) == ('page 2', 'page 3') and 'evidence' in ledger_of('out')['entries'][1]
    assert call(*ask, *request('patient-3', 'patient-5'), '--out', 'out') == 0 # the first page stays as it is
    assert [page(k) for k in (1, 2, 3)] == ['page 2', 'page 3', 'page 4']
    assert call(*ask, *request('patient-4', 'patient-5'), '--out', 'out') == 0 # two earlier requests answer it
    assert 'Requests 2, 3 were answered before: nothing was changed.' in capsys.readouterr().out
    assert [page(k) for k in (1, 2, 3)] == ['page 2', 'page 5', 'page 6']

def test_the_page_of_a_request_is_updated_when_a_later_one_closes_it(here, call):
    twenty = [f'patient-{i}' for i in range(20)]
    assert call(*descent, '--lr', '1e-6', *request(*twenty), '--out', 'out') == 3
    assert call(*ask, *request(*twenty), '--out', 'out') == 0
    assert (page(1), page(2)) == ('page 1', 'page 2')

def test_a_users_file_in_place_of_a_page_is_refused_before_any_work(here, call, capsys, monkeypatch):
    assert call(*ask, *request('patient-3'), '--out', 'out') == 0
    with monkeypatch.context() as m:
        m.setattr('rsu.app.pipeline.unlearn_stream', None) # which would fail if it were called
        for name in ('report-0002.html', 'report-0002.ipynb'):
            (here/'out'/name).write_text('mine', encoding='utf-8')
            assert call(*ask, *request('patient-4'), '--out', 'out') == 2
            assert f"out/{name}' exists and does not belong to this ledger" in capsys.readouterr().err
            assert (here/'out'/name).read_text(encoding='utf-8') == 'mine'
            (here/'out'/name).unlink()
        (here/'new').mkdir()
        (here/'new'/'report-0001.html').write_text('mine', encoding='utf-8')
        assert call(*ask, *request('patient-4'), '--out', 'new') == 2 and names('new') == ['report-0001.html']
    assert call(*ask, *request('patient-4'), '--out', 'out') == 0 and page(2) == 'page 1'

def test_a_users_page_is_not_overwritten_for_a_request_from_python(here, call, capsys):
    from clinic_data import learner
    learn = learner()
    learn.model.load_state_dict(load_file('clinic.safetensors'))
    learn.unlearn_stream([['patient-3']], Retrain(), Ledger('out', by='person'), quiet=True)
    (here/'out'/'report-0001.html').write_text('mine', encoding='utf-8')
    assert call(*ask, *request('patient-3'), '--out', 'out') == 2
    assert "does not belong to this ledger" in capsys.readouterr().err and page(1) == 'mine'

def test_a_moved_copy_is_not_reported_as_removed(here, call, capsys):
    assert call(*ask, *request('patient-3'), '--bank', 'bank', '--out', 'out') == 0
    (here/'clinic.safetensors').rename(here/'renamed.safetensors')
    (here/'bank').rename(here/'moved')
    capsys.readouterr()
    assert call(*ask, *request('patient-3'), '--purge', '--out', 'out') == 3
    printed = capsys.readouterr().out
    assert printed.count('NOT PURGED, not found there') == 2 and 'Purged:' not in printed
    assert [o['purged'] for o in ledger_of('out')['made']] == [None, None]
    (here/'renamed.safetensors').rename(here/'clinic.safetensors')
    assert call(*ask, *request('patient-3'), '--purge', '--out', 'out') == 3 # the bank is still missing
    printed = capsys.readouterr().out
    assert 'Purged: clinic.safetensors' in printed and not (here/'clinic.safetensors').exists()
    assert 'confirm that by the same command with --removed bank.' in printed
    # 'moved' is not on the list of copies
    assert call(*ask, *request('patient-3'), '--purge', '--removed', 'moved', '--out', 'out') == 2
    assert f"which contains: {here/'bank'}" in capsys.readouterr().err
    assert call(*ask, *request('patient-3'), '--purge', '--removed', 'bank', '--out', 'out') == 0
    assert ledger_of('out')['made'][1]['purged'].endswith('by hand')

def test_further_copies_named_by_also_are_purged(here, call, capsys):
    shutil.copy(here/'clinic.safetensors', here/'model.pt')
    shutil.copy(here/'clinic.safetensors', here/'later.pt')
    assert call(*ask, *request('patient-3'), '--also', 'nowhere.pt', '--out', 'out') == 2
    assert "There is no file 'nowhere.pt': --also names further copies" in capsys.readouterr().err
    for _ in range(2): # the second time they are gone
        assert call(*ask, *request('patient-3'), '--also', 'model.pt', '--purge', '--out', 'out') == 0
        assert not (here/'model.pt').exists() and not (here/'clinic.safetensors').exists()
    assert (here/'later.pt').exists()
    assert call(*ask, *request('patient-3'), '--also', 'later.pt', '--purge', '--out', 'out') == 0 # answered before
    assert not (here/'later.pt').exists()

# Changed files are rejected

def test_old_weights_in_place_of_the_unlearned_ones_are_refused(here, call, capsys):
    assert call(*ask, *request('patient-3'), '--out', 'out') == 0
    shutil.copy(here/'clinic.safetensors', here/'out'/'model-0001.safetensors')
    assert call(*ask, *request('patient-4'), '--out', 'out') == 2
    assert 'model-0001.safetensors' in capsys.readouterr().err and len(ledger_of('out')['entries']) == 1

def test_a_changed_ledger_is_rejected(here, call, capsys):
    assert call(*ask, *request('patient-3'), '--out', 'out') == 0
    note = here/'out'/'ledger.json'
    good = note.read_bytes()
    facts = json.loads(good)
    def tampered(**changes):
        note.write_text(json.dumps({**facts, **changes}), encoding='utf-8')
        assert call(*ask, *request('patient-4'), '--purge', '--out', 'out') == 2
        assert 'was changed by something other than rsu' in capsys.readouterr().err
        note.write_bytes(good)
    one = facts['entries'][0]
    tampered(entries=[{**one, 'ids': ['0'*32]}])
    tampered(entries=[{**one, 'digest': '0'*64}])
    tampered(made=[*facts['made'], dict(kind='cache', path=str(here/'erase.csv'), files={}, requests=0, noted='',
                                        purging='now', purged=None)])
    tampered(trash={'../clinic.safetensors': None})
    note.unlink()
    assert call(*ask, *request('patient-4'), '--out', 'out') == 2
    assert 'restore its ledger.json from a copy' in capsys.readouterr().err
    assert (here/'clinic.safetensors').exists() and (here/'erase.csv').exists()

def test_a_rejected_concurrent_request_changes_nothing(here, call, capsys):
    (here/'out').mkdir()
    with FileLock(here/'out'/'ledger.lock'):
        assert call(*ask, *request('patient-3'), '--out', 'out') == 2
    assert 'Another process is answering requests' in capsys.readouterr().err
    assert names('out') == [] and not (here/'out.key').exists()
    assert call(*ask, *request('patient-3'), '--bank', 'bank', '--out', 'out') == 0
    before = (here/'out'/'ledger.json').read_bytes()
    with FileLock(here/'out'/'ledger.lock'):
        for _ in range(5): assert call(*ask, *request('patient-4'), '--bank', 'bank', '--out', 'out') == 2
    assert (here/'out'/'ledger.json').read_bytes() == before

# What the model knows afterwards

def test_a_request_stays_open_while_the_model_still_knows_its_samples(here, call, capsys):
    twenty = [f'patient-{i}' for i in range(20)] # on average the model knows them better than test samples
    assert call(*descent, '--lr', '1e-6', *request(*twenty), '--out', 'out') == 3
    printed, one = capsys.readouterr().out, ledger_of('out')['entries'][0]
    assert f"forgotten {one['before']['forget']:.3f} -> {one['after']['forget']:.3f}" in printed
    assert 'Request 1 stays open' in printed
    assert 'Request 1 is open: the exit code is 3.' in printed
    assert call(*ask, *request(*twenty), '--out', 'out') == 0 # retrained: the open request is worked on, and closed
    first, second = ledger_of('out')['entries']
    assert first['open'] and not second['open'] and first['ids'] == second['ids']
    assert 'stays open' not in capsys.readouterr().out
    assert call(*descent, *request(*twenty), '--out', 'out') == 0
    assert 'was answered before: nothing was changed' in capsys.readouterr().out
    assert len(ledger_of('out')['entries']) == 2
    assert call(*descent, *request(*twenty), '--oracles', '2', '--out', 'out') == 0
    assert 'evidence was added to it' in capsys.readouterr().out and 'evidence' in ledger_of('out')['entries'][1]

twenty = [f'patient-{i}' for i in range(20)]
faint = [*descent, '--lr', '1e-6'] # leaves a request open

def test_nothing_is_purged_while_a_request_is_open(here, call, capsys):
    assert call(*faint, *request(*twenty), '--purge', '--out', 'out') == 3
    assert 'Not purged: nothing is removed while a request is open (Request 1).' in capsys.readouterr().out
    assert (here/'clinic.safetensors').exists()
    assert call(*ask, *request('patient-30'), '--purge', '--out', 'out') == 3 # another person's request is answered
    printed = capsys.readouterr().out
    assert 'Request 1, for other samples, is open, too' in printed and 'Not purged' in printed
    assert (here/'clinic.safetensors').exists()
    assert call(*ask, *request(*twenty), '--purge', '--out', 'out') == 0
    assert not (here/'clinic.safetensors').exists()

def test_the_exit_code_is_3_whenever_the_named_request_is_open(here, call, capsys):
    for _ in range(2): assert call(*faint, *request(*twenty), '--out', 'out') == 3
    assert 'Request 2 is open: the exit code is 3.' in capsys.readouterr().out
    assert (page(1), page(2)) == ('page 1', 'page 2') # the page of the repeated request is written again
    assert call(*ask, *request('patient-30'), '--out', 'out') == 0 # the open request is of others
    assert 'Request 2, for other samples, is open, too' in capsys.readouterr().out
    assert call(*ask, *request(*twenty), '--out', 'out') == 0
    assert [page(k) for k in (1, 2, 3, 4)] == ['page 4', 'page 5', 'page 3', 'page 6'] # the whole chain

def test_what_a_request_prints(here, call, capsys):
    weights = ask.index('--weights')
    without = ask[:weights] + ask[weights+2:]
    assert call(*without, *request('patient-3'), '--out', 'out') == 2
    assert "The first request needs the model's weights" in capsys.readouterr().err
    assert call(*ask, *request('patient-3'), '--out', 'out') == 0
    printed = capsys.readouterr().out
    assert 'Weights: out/model-0001.safetensors (the answer to the next request replaces' in printed
    assert 'Key: out.key' in printed
    assert call(*without, *request('patient-4'), '--json', '--out', 'out') == 0
    captured = capsys.readouterr()
    assert 'Starting from out/model-0001.safetensors, the weights after request 1.' in captured.err
    facts = json.loads(captured.out)
    assert (facts['complete'], facts['open'], facts['weights']) == (True, [], 'out/model-0002.safetensors')
    assert [o['request'] for o in facts['requests']] == [2] and 'ids' not in facts['requests'][0]

def test_the_result_names_exact_answers_and_the_interval():
    figures = dict(forget=.9, test=.8)
    evidence = dict(unlearned=dict(auc=.548, auc_ci=.087), retrain=dict(auc=.51, forget=.85))
    def result(kind):
        entry = dict(request=1, ids=['a'], how=dict(kind=kind), before=figures, after=figures, evidence=evidence)
        return _result(SimpleNamespace(entry=entry, entries=[entry]))
    assert result('Retrain').startswith('**Exact**') and 'Exact' not in result('SCRUB')
    assert '0.55 ± 0.09' in result('SCRUB') and 'never saw the samples classify 85%' in result('SCRUB')

# Who was erased?

def found(here, dls, margins=None):
    """Persons that an attacker finds in the files, who searches for names, positions and samples, their hashes,
    and given bytes for each person."""
    person, x = dls.train_ds.frame.person, dls.train_ds.tensors[0]
    files = [o for o in here.rglob('*') if o.is_file() and o.suffix not in ('.py', '.csv')
             and '.key' not in o.name and '__pycache__' not in o.parts]
    text = b'|'.join(o.read_bytes() + str(o.relative_to(here)).encode() for o in files)
    whole = fingerprint(dls)
    def traces(who):
        at = np.flatnonzero(person == who)
        split = ForgetSplit(dls, at)
        known = [split.key, fingerprint(split.retain_dls),
                 *(f(who.encode()).hexdigest() for f in (hashlib.sha256, hashlib.md5))]
        known += [hashlib.sha256(o).hexdigest() for o in (at.tobytes(), str(at.tolist()).encode(), at.tobytes() + b';')]
        raw = [who.encode(), np.setdiff1d(np.arange(len(person)), at).tobytes()]
        if at[0]: raw += [at.tobytes(), at.astype('i4').tobytes()] # 0 and 1 are in any file
        raw += [x[i].numpy().tobytes() for i in at] + (margins or {}).get(who, [])
        return [o for o in (*(k[:8].encode() for k in known if k != whole), *raw) if o in text]
    return [who for who in person.unique() if traces(who)]

def test_files_do_not_reveal_who_was_erased(here, call):
    assert call(*ask, *request('patient-3'), '--bank', 'bank', '--oracles', '2', '--purge', '--out', 'out') == 0
    from clinic_data import loaders
    dls = loaders()
    assert found(here, dls) == []
    at = np.flatnonzero(dls.train_ds.frame.person == 'patient-3')
    (here/'out'/f'oracle-{ForgetSplit(dls, at).key}.txt').write_text('named as it was before', encoding='utf-8')
    assert found(here, dls) == ['patient-3'] # the search finds what a file contains

@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_files_of_an_interrupted_request_do_not_reveal_who_is_erased(here, monkeypatch):
    """The stored stages contain the margins of the forget set, which would identify a person: they are encrypted.
    The folder of the stages is named by an HMAC."""
    from clinic_data import learner
    learn = learner()
    learn.model.load_state_dict(load_file('clinic.safetensors'))
    names = {}
    for who, at in pd.Series(range(120)).groupby(learn.dls.train_ds.frame.person):
        split = ForgetSplit(learn.dls, at)
        how = NegGradPlus().with_budget(2, .02).resolve(learn, split)
        names[who] = _Progress(here/'none', learn, split, how, derive_seed(0, 1), None, how.stages(split)).made
        names[who] = [names[who][k].encode() for k in ('samples', 'groups')]
    log, stages = here/'log.txt', lambda: list((here/'out').glob('work-*/stages.safetensors'))
    for k in range(4, 40):
        shutil.rmtree(here/'out', ignore_errors=True)
        for o in here.glob('out.key*'): o.unlink()
        assert in_child([*descent, *request('patient-3'), '--out', 'out'], log, die_at=k)[0] == 9
        if stages(): break
    tensors = read_shard(stages()[0])[0]
    learn.model.load_state_dict({k.removeprefix('model.'): v for k, v in tensors.items() if k.startswith('model.')})
    phi, person = margin(*predict_train(learn.model, learn.dls)), learn.dls.train_ds.frame.person
    margins = {who: [*names[who], *(phi[np.flatnonzero(person == who)].numpy().astype(t).tobytes()
                                   for t in ('f4', 'f8'))] for who in person.unique()}
    log.unlink()
    assert found(here, learn.dls, margins) == []
    (here/'out'/'plain').write_bytes(margins['patient-7'][2])
    assert found(here, learn.dls, margins) == ['patient-7']

# A crash at each operation on a file

def state(here):
    "The results of a request without times: ledger, weights, names of files"
    clock = {'time', 'seconds', 'noted', 'purging', 'purged', 'hmac', 'amended'}
    def timeless(o):
        if isinstance(o, dict):
            return {k: v is not None if k in ('purged', 'purging') else timeless(v)
                    for k, v in o.items() if k not in clock - {'purged', 'purging'}}
        return [timeless(v) for v in o] if isinstance(o, list) else o
    facts = timeless(json.loads((here/'out'/'ledger.json').read_text(encoding='utf-8')))
    file = here/'out'/f"model-{len(facts['entries']):04}.safetensors"
    weights = {k: v.numpy().tobytes() for k, v in read_shard(file)[0].items()}
    there = sorted(str(o.relative_to(here)) for o in here.rglob('*')
                   if o.suffix not in ('.lock', '.pyc', '') or o.is_dir())
    return json.loads(json.dumps(facts).replace(str(here), '')), weights, there

def in_child(args, log, die_at=None):
    """The command in a forked process, which dies before its `die_at`th operation on a file.
    Returns its exit code and its number of operations."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            here, count = str(Path.cwd()), [0]
            def operation(event, details):
                writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
                if event == 'open' and not (isinstance(details[2], int) and details[2] & writes): return
                if event not in ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'shutil.rmtree'): return
                path = str(details[0])
                if path.endswith(('.lock', '.pyc')) or not str(Path(path).absolute()).startswith(here): return
                if count[0] == die_at: os._exit(9)
                count[0] += 1
            sys.addaudithook(operation)
            import rsu.app.cli, rsu.app.pipeline
            def write_page(out, request):
                page = Path(out)/f'report-{request:04}.html'
                page.write_text('a page', encoding='utf-8')
                return page
            rsu.app.pipeline.write_page = write_page
            secrets.token_bytes = lambda n: b'k'*n # the same ids in every run
            sys.stdout = sys.stderr = open(log, 'a', encoding='utf-8', buffering=1)
            code = exit_code(*args)
            os.write(write, str(count[0]).encode())
            os._exit(code)
        except BaseException:
            import traceback
            Path(log).write_text(traceback.format_exc(), encoding='utf-8')
            os._exit(77)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    n_operations = os.read(read, 99)
    os.close(read)
    return code, int(n_operations or -1)

@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_request_can_be_repeated_after_a_crash_at_any_file_operation(clinic, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, 'path', [str(clinic), *sys.path])
    def fresh(name):
        shutil.copytree(clinic, tmp_path/name)
        monkeypatch.chdir(tmp_path/name)
        return tmp_path/name
    # The oracles cannot decide for two samples, so the margins must fall for both requests.
    more = '--bank bank --oracles 2 --purge --out out --algorithm gradascent --lr .05'.split()
    here = fresh('whole')
    command, log = [*descent, *request('patient-3'), *more], tmp_path/'log.txt'
    code, n = in_child(command, log)
    assert code == 0 and n > 40, log.read_text(encoding='utf-8')
    whole = state(here)
    request('patient-4')
    assert in_child(command, log)[0] == 0
    both = state(here)
    every = os.environ.get('RSU_NIGHTLY') # all operations take minutes
    for k in range(n) if every else sorted(random.Random(0).sample(range(n), n//6)):
        here = fresh(f'crash-{k}')
        request('patient-3')
        assert in_child(command, log, die_at=k)[0] == 9, k
        if k % 2: # repeat the request
            code = in_child(command, log)[0]
            assert code == 0, f'the request could not be repeated after a crash before operation {k} of {n}'
            assert state(here) == whole, f'crash before operation {k} of {n}'
        else: # repeat the request, then make another one
            assert in_child(command, log)[0] == 0, k
            request('patient-4')
            assert in_child(command, log)[0] == 0, k
            assert state(here) == both, f'crash before operation {k} of {n}'
        shutil.rmtree(here)
