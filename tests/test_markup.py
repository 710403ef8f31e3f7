"Reports show text from data as text: no name of a class, group, file, ranker or algorithm acts as markup."
from html.parser import HTMLParser

import nbformat, torch
from rsu.core.data import Samples, loaders
from rsu.core.store import key_of, read_json, write_json
from rsu.erasure.ledger import Ledger
from rsu.erasure.report import write_page
from rsu.core.template import write_report

tricks = ['<script>alert(1)</script>', '<img src=x onerror=alert(2)>', '[click](javascript:alert(3))',
          '</td></table><b onclick=alert(4)>', '| a | `b` |', '$\\frac$ **c**']

module = '''
import torch
from rsu.all import *
from rsu.core.data import Samples, loaders as make
vocab = NAMES
def loaders():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(660) % len(vocab)
    x = torch.randn(660, 4, generator=g) + y[:,None]
    return make(*(Samples(x[a:b], y[a:b], vocab) for a, b in ((0, 540), (540, 600), (600, 660))))
Milder = type('<b onclick=alert(5)>Milder</b>', (FineTune,), dict(
    __module__=__name__, __doc__='An algorithm.', __annotations__=dict(bs=int), bs=16))
globals()[Milder.__name__] = Milder
'''

class Page(HTMLParser):
    "The text of a page, and the tags and links in it that would run code or load something"
    def __init__(self, text):
        super().__init__()
        self.text, self.acts, self.inside = '', [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside.append(tag)
        links = [v or '' for k, v in attrs if k in ('href', 'src', 'action', 'formaction', 'xlink:href', 'srcdoc')]
        if tag in ('script', 'iframe', 'object', 'embed', 'form') or any(k.startswith('on') for k, _ in attrs):
            self.acts.append((tag, attrs))
        self.acts += [(tag, o) for o in links if not o.startswith(('#', 'data:image/png'))]

    def handle_data(self, data): self.text += data

    def __contains__(self, words): return ' '.join(words.split()) in ' '.join(self.text.split())

def assert_no_markup(page, visible):
    "No part of the page runs code or loads something, and each of the words is visible"
    found = Page(page.read_text(encoding='utf-8'))
    assert found.acts == []
    assert [o for o in visible if o not in found] == []
    notebook = nbformat.read(page.with_suffix('.ipynb'), as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs if 'data' in o]
    text = '\n'.join(o.data.get('text/markdown', '') for o in outputs) # which Jupyter renders
    assert not any(mark in text for mark in ('<script', '<img', '<b ', ']('))

def test_names_in_the_report_of_a_run_are_shown_as_text(here, no_report):
    out, ids = here/'<img src=x onerror=alert(6)>', '<img src=x onerror=alert(7)>.csv'
    (here/'traps.py').write_text(module.replace('NAMES', repr(tricks)), encoding='utf-8')
    (here/ids).write_text('id\n' + '\n'.join(map(str, range(12))), encoding='utf-8')
    options = ['--data', 'traps:loaders', '--forget', ids, '--groups', 'class', '--ranker', 'random',
               '--oracles', 2, '--train-epochs', 2, '--algorithm', 'traps:<b onclick=alert(5)>Milder</b>']
    assert no_report(*options, '--out', out) == 0
    facts = read_json(out/'run.json', 'run')
    facts.update(ranker=tricks[0], command='rsu run\n```\n' + '\n'.join(tricks), taken=tricks[:3],
                 versions={**facts['versions'], 'device': tricks[1]})
    write_json(out/'run.json', facts, 'run', key_of(settings=facts['settings'], request=facts['request']))
    page = write_report(out, trust=True)
    groups = [f'accuracy on group {o}' for o in tricks]
    assert_no_markup(page, [*tricks, ids, '<b onclick=alert(5)>Milder</b>', *groups])

def test_names_in_the_report_of_a_ledger_are_shown_as_text(tmp_path):
    g = torch.Generator().manual_seed(0)
    dls = loaders(*(Samples(torch.randn(n, 4, generator=g), torch.arange(n) % 2) for n in (60, 20, 20)))
    folder = tmp_path/tricks[1]
    ledger, old = Ledger(folder), tmp_path/'<img src=x onerror=alert(8)>.safetensors'
    old.write_text('', encoding='utf-8')
    ledger.note(old, 'weights')
    shares = dict.fromkeys(('forget', 'retain', 'valid', 'test'), .5)
    drift = dict(called=.5, called_most=.6, lost=.1, lost_most=.2, due=tricks[2])
    ledger.add(dls, [3, 4], how=dict(kind='Unknown', groups=tricks[3]), seed=0, before=shares, after=shares,
               steps=1, seconds=1., ended=tricks[4], digest='0'*64, rsu=tricks[0], torch=tricks[1], drift=drift)
    assert_no_markup(write_page(folder), [*tricks[:3], tricks[4], old.name])
