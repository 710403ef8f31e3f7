"The documentation, as a reader's browser sees it."
import re, subprocess, sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from common import in_browser, open_browser

root = Path(__file__).parent.parent

@pytest.fixture(scope='module')
def docs():
    "The site, built anew."
    made = subprocess.run([sys.executable, root/'.ci/site.py'], capture_output=True, text=True, encoding='utf-8')
    assert made.returncode == 0, made.stdout + made.stderr
    return root/'_docs'

@pytest.fixture(scope='module')
def pages(docs):
    "Each page: where it came to rest, its links and ids, its formulas, and what the browser asked for and complained of."
    from playwright.sync_api import sync_playwright

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=docs))
    Thread(target=server.serve_forever, daemon=True).start()
    home = f'http://127.0.0.1:{server.server_port}/'
    with sync_playwright() as p:
        browser = open_browser(p)
        tab = browser.new_page()
        asked, complaints = [], []
        tab.on('request', lambda r: asked.append(r.url))
        tab.on('requestfailed', lambda r: complaints.append(f'{r.url} {r.failure}'))
        tab.on('console', lambda m: complaints.append(m.text) if m.type in ('error', 'warning') else None)
        tab.on('pageerror', lambda e: complaints.append(str(e)))
        seen = {}
        for f in sorted(docs.rglob('*.html')):
            asked.clear(); complaints.clear()
            tab.goto(home + f.relative_to(docs).as_posix(), wait_until='networkidle')
            seen[tab.url] = dict(
                links=tab.eval_on_selector_all('a[href]', 'els => els.map(e => e.href)'),
                ids=tab.eval_on_selector_all('[id]', 'els => els.map(e => e.id)'),
                formulas=tab.locator('.katex').count(), bad_formulas=tab.locator('.katex-error').count(),
                raw=tab.locator('span.math').count(), asked=list(asked), complaints=list(complaints))
        yield home, seen, tab
        browser.close()
    server.shutdown()
    server.server_close()

def test_builds_without_complaints(docs): assert (docs/'index.html').is_file()

def test_no_link_is_left_as_it_was_written(docs):
    # names in a link's text must not stand in backticks: nbdev makes links of their own of them, within the link
    # and a signature is code, in which a link would stand as it is written
    assert {f'{f.name}: {o}' for f in docs.rglob('*.html') for o in re.findall(r'\]\((?:[\w/.]+\.ipynb\)|https?:).{,40}', f.read_text(encoding='utf-8'))} == set()

@in_browser
def test_no_page_complains(pages): assert {url: p['complaints'] for url, p in pages[1].items() if p['complaints']} == {}

@in_browser
def test_no_request_leaves(pages):
    home, seen, _ = pages
    assert {a for p in seen.values() for a in p['asked'] if not a.startswith((home, 'data:'))} == set()

@in_browser
def test_formulas_are_drawn(pages):
    seen = pages[1]
    assert sum(p['formulas'] for p in seen.values()) > 0
    assert {url for url, p in seen.items() if p['bad_formulas'] or p['formulas'] < p['raw']} == set()

@in_browser
def test_links_lead_somewhere(pages, docs):
    home, seen, _ = pages
    lost = set()
    for url, p in seen.items():
        for link in p['links']:
            if not link.startswith(home): continue
            to, _, part = link.partition('#')
            if to.endswith('/'): to += 'index.html'
            if to in seen: ok = not part or unquote(part) in seen[to]['ids']
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
