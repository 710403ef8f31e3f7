"A folder from another person, or one that others can write to, is read without running code from it."
import json, os, sys

import pytest
from common import small
from rsu.core.datasets import digits
from rsu.app.report import load_run
from rsu.core.template import write_report
from rsu.core.config import InputError
from rsu.core.store import key_of, read_json, read_table, write_json, write_table

ran = "with open({0!r}, 'a', encoding='utf-8') as f: f.write(__name__ + '\\n')\n"
algorithm = 'from rsu.all import FineTune\nclass Sent(FineTune): "An algorithm."\n'
data = 'from rsu.core.datasets import digits\ndef loaders(): return digits(n=300)\n'

@pytest.fixture
def sent(here, no_report):
    "A run with the sender's own algorithm, whose settings name a data function in another module of the sender"
    (here/'sender.py').write_text(ran.format(str(here/'ran')) + algorithm, encoding='utf-8')
    (here/'senders_data.py').write_text(ran.format(str(here/'ran')) + data, encoding='utf-8')
    assert no_report(*small, '--ranker', 'random', '--algorithm', 'sender:Sent', '--out', 'sent') == 0
    facts = read_json(here/'sent'/'run.json')
    facts['settings'].update(data='senders_data:loaders', n=None)
    key = key_of(settings=facts['settings'], request=facts['request'])
    write_json(here/'sent'/'run.json', facts, 'run', key)
    for k in ('ranking', 'stages', 'changes', 'runs', 'table'):
        file = here/'sent'/f'{k}.parquet'
        write_table(file, read_table(file), k, key)
    (here/'ran').unlink()
    return here

def forget_modules():
    for k in ('sender', 'senders_data'): sys.modules.pop(k, None)

def test_no_module_that_a_folder_names_is_imported(sent, monkeypatch):
    forget_modules()
    from rsu.core.config import value_classes
    monkeypatch.delitem(value_classes, 'Sent')
    for options in (dict(), dict(dls=digits(n=300))):
        with pytest.raises(InputError, match="not part of rsu, sender.*trust=True.*dls="):
            load_run(sent/'sent', **options)
    with pytest.raises(InputError, match='not part of rsu, senders_data:loaders'): write_report(sent/'sent')
    assert not (sent/'ran').exists()
    run = load_run(sent/'sent', trust=True)
    assert type(run.unlearning.how.algorithm).__name__ == 'Sent'
    assert (sent/'ran').read_text(encoding='utf-8').split() == ['sender', 'senders_data']

def test_a_run_is_read_with_the_callers_data_and_classes(sent):
    run = load_run(sent/'sent', digits(n=300)) # the run in this process has imported the class
    assert len(run.ranking) == 12 and not (sent/'ran').exists()
    with pytest.raises(InputError, match='labels differ'): load_run(sent/'sent', digits(n=300, seed=1))
    with pytest.raises(InputError, match='no finished run'): load_run(sent)

planted = ['json', 'tomli_w', 'pandas', 'rsu', 'IPython', 'ipykernel', 'matplotlib_inline',
           'sitecustomize', 'usercustomize',
           'seaborn', 'html', 're']

@pytest.fixture
def trapped(here, no_report, monkeypatch):
    "A finished run with modules of well-known names in its folder, and another program as the kernel python3"
    assert no_report(*small, '--ranker', 'random', '--out', 'out') == 0
    for name in planted: (here/'out'/f'{name}.py').write_text(ran.format(str(here/'ran')), encoding='utf-8')
    (here/'out'/'matplotlibrc').write_text('planted: 1', encoding='utf-8') # for which matplotlib would warn
    (here/'jupyter'/'kernels'/'python3').mkdir(parents=True)
    spec = dict(argv=[sys.executable, '-c', ran.format(str(here/'ran'))], language='python', display_name='Another')
    (here/'jupyter'/'kernels'/'python3'/'kernel.json').write_text(json.dumps(spec), encoding='utf-8')
    monkeypatch.setenv('JUPYTER_PATH', str(here/'jupyter'))
    (here/'basic').mkdir() # which nbconvert would use as its template of that name
    conf = dict(base_template='classic', mimetypes={'text/html': True})
    (here/'basic'/'conf.json').write_text(json.dumps(conf), encoding='utf-8')
    (here/'basic'/'index.html.j2').write_text('planted', encoding='utf-8')
    return here/'out'

@pytest.mark.parametrize('path', ['', os.pathsep])
def test_modules_in_the_folder_of_a_run_are_not_imported(path, trapped, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', path) # an empty entry means the folder in which Python is started
    page = write_report(trapped)
    assert not (trapped.parent/'ran').exists()
    text = page.read_text(encoding='utf-8')
    assert 'Unlearning report' in text and 'planted' not in text

def test_the_report_runs_in_this_python_and_has_pictures(trapped, monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    cells = json.loads((write_report(trapped).with_suffix('.ipynb')).read_text(encoding='utf-8'))
    assert cells['metadata']['language_info']['version'] == '.'.join(map(str, sys.version_info[:3]))
    assert (trapped/'report.html').read_text(encoding='utf-8').count('data:image/png;base64,') >= 5
