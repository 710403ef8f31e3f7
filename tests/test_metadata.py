"What is written beside the code: metadata, README, citation, contributing, templates and workflows."
import re
from configparser import ConfigParser
from html.parser import HTMLParser
from importlib.metadata import metadata, requires
from pathlib import Path
from urllib.parse import urldefrag

import pytest, rsu, yaml
from nbdev.doclinks import _nbpath2html
from readme_renderer.markdown import render

root = Path(__file__).parent.parent
parser = ConfigParser(delimiters=['='])
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
site = f"{cfg['doc_host']}{cfg['doc_baseurl']}/"
files = f"{cfg['git_url']}/blob/{cfg['branch']}/"
pictures = f"https://raw.githubusercontent.com/{cfg['user']}/{cfg['repo']}/{cfg['branch']}/"
workflow_runs = f"{cfg['git_url']}/actions/workflows/"
workflows = sorted((root/'.github/workflows').glob('*.yml'))
forms = sorted((root/'.github/ISSUE_TEMPLATE').glob('*.yml'))

def text_of(name): return (root/name).read_text(encoding='utf-8')

def targets():
    "The targets of the Makefile; a rule may have several"
    return {o for names in re.findall(r'^([\w -]+):(?!=)', text_of('Makefile'), re.M) for o in names.split()}

def parsed(path): return yaml.safe_load(path.read_text(encoding='utf-8'))

def test_the_version_is_written_once():
    assert rsu.__version__ == cfg['version']

def test_the_metadata_are_those_of_settings_ini():
    facts = metadata('rsu')
    assert (facts['Version'], facts['License-Expression']) == (cfg['version'], cfg['license'])
    links = dict(o.split(', ') for o in facts.get_all('Project-URL'))
    assert {*links} == {'Documentation', 'Source', 'Issues', 'Changelog'}
    assert all(o.startswith((site.rstrip('/'), cfg['git_url'])) for o in links.values())

def required(extra=None):
    "The names of the packages that a plain installation requires, or those of an extra"
    marked = (o.partition(';') for o in requires('rsu'))
    return {re.match(r'[\w.-]+', o)[0] for o, _, marker in marked
            if (f'extra == "{extra}"' in marker if extra else not marker)}

def test_a_plain_installation_has_no_package_of_an_extra():
    extras = metadata('rsu').get_all('Provides-Extra')
    assert extras == ['report', 'tune', 'study', 'dask', 'slurm', 'docs', 'dev']
    assert 'torch' in required() and not required() & set.union(*map(required, extras))

def test_docs_and_dev_contain_the_other_extras():
    for extra in ('report', 'tune', 'study', 'dask', 'slurm'):
        assert required(extra) < required('docs') < required('dev')

class Links(HTMLParser):
    "The addresses of all links and pictures of a page"
    def __init__(self):
        super().__init__()
        self.found = []
    def handle_starttag(self, tag, attrs): self.found += [v for k, v in attrs if k in ('href', 'src')]

@pytest.fixture(scope='module')
def links():
    "The links of the README, as a package index renders it"
    page, found = render(text_of('README.md')), Links()
    assert page is not None
    found.feed(page)
    return [urldefrag(o) for o in found.found]

def exists(address, pages):
    "Does an address of our own name a page of the site, a file or a workflow? True for those of others"
    if address.startswith(site): return address.removeprefix(site) in pages
    for home, folder in ((files, ''), (pictures, ''), (workflow_runs, '.github/workflows/')):
        name = address.removeprefix(home).removesuffix('/badge.svg')
        if address.startswith(home): return (root/folder/name).is_file()
    return not address.startswith(cfg['git_url']) or address == cfg['git_url']

def test_each_link_of_the_readme_is_absolute_and_those_of_our_own_exist(links):
    notebooks = [o.relative_to(root/'nbs') for o in (root/'nbs').rglob('[!_]*.ipynb')]
    pages = {_nbpath2html(o).as_posix() for o in notebooks} | {''}
    assert len(links) > 30 and not [o for o, _ in links if o and not o.startswith('https://')]
    assert [o for o, _ in links if not exists(o, pages)] == []
    assert any(o.startswith(pictures) for o, _ in links) and any(o.startswith(workflow_runs) for o, _ in links)
    assert not exists(f'{site}core/none.html', pages) and not exists(f'{files}NONE', pages)

@pytest.mark.parametrize('name', ['CONTRIBUTING.md', 'CHANGELOG.md', '.github/PULL_REQUEST_TEMPLATE.md'])
def test_relative_links_name_files(name):
    found = [o.partition('#')[0] for o in re.findall(r'\]\(([^)\s]+)\)', text_of(name))]
    assert [o for o in found if not o.startswith('https://') and not (root/name).parent.joinpath(o).exists()] == []

def test_commands_and_files_of_contributing_exist():
    text = text_of('CONTRIBUTING.md')
    spans = re.findall(r'`([^`\n]+)`', text) + re.findall(r'^    (\S.*)', text, re.M)
    commands = {o for span in spans if span.startswith('make ') for o in span.split('#')[0].split()[1:]}
    named = {o for span in spans for o in re.findall(r'(?:nbs|tests|\.ci|\.github)/[\w/.-]*\w', span)}
    assert {'test', 'test-wheel', 'export', 'clean'} <= commands and len(named) > 8
    assert [o for o in named if not (root/o).exists()] == []
    assert {o for o in commands if '=' not in o} <= targets()

def test_the_citation_is_that_of_settings_ini():
    cited = parsed(root/'CITATION.cff')
    assert {'cff-version', 'message', 'title', 'authors'} <= cited.keys() and cited['cff-version'] == '1.2.0'
    assert cited['title'].split(':')[0] == cfg['lib_name'] and cited['abstract'] == cfg['description']
    assert (cited['version'], cited['license']) == (cfg['version'], cfg['license'])
    assert (cited['repository-code'], cited['url'] + '/') == (cfg['git_url'], site)
    assert cited['authors'] == [{'name': cfg['author']}] and cited['keywords'] == cfg['keywords'].split()

def steps(workflow): return [o for job in parsed(workflow)['jobs'].values() for o in job['steps']]

@pytest.mark.parametrize('path', workflows, ids=lambda o: o.stem)
def test_workflows_call_targets_of_the_makefile(path):
    called = {o for s in steps(path) for o in re.findall(r'\bmake ([\w-]+)', s.get('run', ''))}
    assert called and called <= targets()
    assert all(('uses' in s) != ('run' in s) for s in steps(path))

def test_the_workflows_run_every_check():
    ran = '\n'.join(s.get('run', '') for path in workflows for s in steps(path)).split('\n')
    assert {'make test', 'make test-wheel', 'make docs'} <= {*ran}

def test_tests_run_with_each_python_that_the_metadata_name():
    named = re.findall(r'^Programming Language :: Python :: (3\.\d+)$', cfg['classifiers'], re.M)
    tested = parsed(root/'.github/workflows/test.yml')['jobs']['test']['strategy']['matrix']['python']
    assert tested == named and named[0] == cfg['min_python']

@pytest.mark.parametrize('path', forms, ids=lambda o: o.stem)
def test_forms_for_issues_are_complete(path):
    form = parsed(path)
    assert form['name'] and form['description']
    assert all(o['attributes']['label'] and o['id'] and o['type'] in ('input', 'textarea', 'checkboxes')
               for o in form['body'])

def test_there_is_a_form_for_each_kind_of_issue():
    assert [o.stem for o in forms] == ['bug', 'proposal', 'question']
