"The documentation site, built and opened in a browser."
import json, re, subprocess, sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from common import in_browser, open_browser
from rsu.evaluation.evaluate import main_measures

root = Path(__file__).parent.parent

def markdown(page):
    "The Markdown cells of a notebook below nbs/"
    cells = json.loads((root/'nbs'/page).read_text(encoding='utf-8'))['cells']
    return [''.join(o['source']) for o in cells if o['cell_type'] == 'markdown']

def test_the_glossary_is_sorted_and_explains_every_column():
    text = '\n'.join(markdown('tutorials/glossary.ipynb'))
    terms = re.findall('^### (.+)', text, re.M)
    assert len(terms) > 40 and terms == sorted(terms, key=str.lower)
    assert re.findall(r'^\| `(\w+)` \|', text, re.M) == main_measures

@pytest.fixture(scope='module')
def docs():
    "The site, newly built"
    made = subprocess.run([sys.executable, root/'.ci/site.py'], capture_output=True, text=True, encoding='utf-8')
    assert made.returncode == 0, made.stdout + made.stderr
    return root/'_docs'

@pytest.fixture(scope='module')
def pages(docs):
    "Address of the site, facts on each page (links, ids, formulas, requests, complaints of the browser), and a tab"
    from playwright.sync_api import sync_playwright

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=docs))
    Thread(target=server.serve_forever, daemon=True).start()
    home = f'http://127.0.0.1:{server.server_port}/'
    with sync_playwright() as p:
        browser = open_browser(p)
        tab = browser.new_page()
        requests, complaints = [], []
        tab.on('request', lambda r: requests.append(r.url))
        tab.on('requestfailed', lambda r: complaints.append(f'{r.url} {r.failure}'))
        tab.on('console', lambda m: complaints.append(m.text) if m.type in ('error', 'warning') else None)
        tab.on('pageerror', lambda e: complaints.append(str(e)))
        facts = {}
        for f in sorted(docs.rglob('*.html')):
            requests.clear()
            complaints.clear()
            tab.goto(home + f.relative_to(docs).as_posix(), wait_until='networkidle')
            facts[tab.url] = dict(
                links=tab.eval_on_selector_all('a[href]', 'els => els.map(e => e.href)'),
                ids=tab.eval_on_selector_all('[id]', 'els => els.map(e => e.id)'),
                formulas=tab.locator('.katex').count(), bad_formulas=tab.locator('.katex-error').count(),
                raw=tab.locator('span.math').count(), requests=list(requests), complaints=list(complaints))
        yield home, facts, tab
        browser.close()
    server.shutdown()
    server.server_close()

def test_the_site_builds(docs): assert (docs/'index.html').is_file()

def test_no_link_is_left_as_markdown(docs):
    # A link stays as written where its text has a name in backticks, which nbdev makes a link too, and in signatures.
    link = re.compile(r'\]\((?:[\w/.]+\.ipynb\)|https?:).{,40}')
    assert [f'{f.name}: {o}' for f in docs.rglob('*.html') for o in link.findall(f.read_text(encoding='utf-8'))] == []

@in_browser
def test_the_browser_reports_no_errors(pages):
    assert len(pages[1]) > 20 # the tests below pass where there is no page
    assert {url: p['complaints'] for url, p in pages[1].items() if p['complaints']} == {}

@in_browser
def test_pages_load_nothing_from_elsewhere(pages):
    home, facts, _ = pages
    assert {a for p in facts.values() for a in p['requests'] if not a.startswith((home, 'data:'))} == set()

@in_browser
def test_formulas_are_rendered(pages):
    facts = pages[1]
    assert sum(p['formulas'] for p in facts.values()) > 0
    assert {url for url, p in facts.items() if p['bad_formulas'] or p['formulas'] < p['raw']} == set()

@in_browser
def test_links_lead_to_existing_pages_and_sections(pages, docs):
    home, facts, _ = pages
    lost = set()
    for url, p in facts.items():
        for link in p['links']:
            if not link.startswith(home): continue
            to, _, part = link.partition('#')
            if to.endswith('/'): to += 'index.html'
            if to in facts: ok = not part or unquote(part) in facts[to]['ids']
            else: ok = (docs/urlsplit(to).path.lstrip('/')).is_file()
            if not ok: lost.add(f'{url} -> {link}')
    assert lost == set()

@in_browser
def test_search_finds_a_page(pages):
    home, _, tab = pages
    tab.goto(home, wait_until='networkidle')
    tab.get_by_role('searchbox').fill('quickstart')
    tab.locator('a.search-result[href*="quickstart.html"]').first.click()
    tab.wait_for_url('**/quickstart.html*')
