"The documentation site, built and opened in a browser."
import html, importlib, json, re, subprocess, sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from common import in_browser, open_browser
from nbdev.doclinks import _nbpath2html

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'.ci'))
citing,glossary_terms = (importlib.import_module(o) for o in ('citations','terms'))

def notebooks():
    "The cells of each notebook below nbs/, by its path"
    files = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
    return {p.relative_to(root/'nbs').as_posix(): json.loads(p.read_text(encoding='utf-8'))['cells'] for p in files}

def markdown(cells): return '\n\n'.join(''.join(o['source']) for o in cells if o['cell_type'] == 'markdown')

def test_links_between_pages_name_the_notebook():
    # A link to the .html works on the site alone, a link to the .ipynb in Jupyter and on GitHub, too.
    link = re.compile(r'\]\((?!https?:)([^)\s]+\.html[^)\s]*)\)')
    found = {page: link.findall(markdown(cells)) for page,cells in notebooks().items()}
    assert {page: links for page,links in found.items() if links} == {}

def test_the_glossary_is_sorted():
    text = markdown(notebooks()['tutorials/glossary.ipynb'])
    terms = re.findall('^### (.+)', text, re.M)
    assert len(terms) > 40 and terms == sorted(terms, key=str.lower)

def test_every_citation_has_an_entry_and_every_entry_a_citation():
    known,found = citing.entries(), []
    for page,cells in notebooks().items():
        if page == 'references.ipynb': continue
        for i,cell in enumerate(cells):
            found += [(f'{page}, cell {i}', o) for o in citing.citations(''.join(cell['source']), known)]
    missing = [f'{where}: {o.text}' for where,o in found if o.entry is None]
    assert not missing, f'add entries to nbs/references.ipynb: {missing}'
    unused = {o.anchor for o in known} - {o.entry.anchor for _,o in found}
    assert not unused, f'no page cites these entries of nbs/references.ipynb: {unused}'

def test_citations_become_links_in_prose_only():
    known = citing.entries()
    def link(html): return citing.link_citations(html, known, 'R')
    assert link('<p>RUM (Zhao et al., NeurIPS 2024)') == '<p>RUM (<a href="R#zhao-2024">Zhao et al., NeurIPS 2024</a>)'
    assert link('<td>Jia et\n al. (2023) find') == '<td><a href="R#jia-2023">Jia et\n al. (2023)</a> find'
    assert link('Song &amp; Mittal (CCS 2021, section 3)').endswith('Mittal</a> (CCS 2021, section 3)')
    two = link('Feldman 2020; Feldman &amp; Zhang, NeurIPS 2020')
    assert re.findall(r'#([^"]+)', two) == ['feldman-2020', 'feldman-and-zhang-2020']
    for same in ('<code>Zhao et al. 2024</code>', '<a href="x">Zhao et al. 2024</a>', '<h2>Zhao et al. 2024</h2>',
                 '<script>"Zhao et al. 2024"</script>', 'the NeurIPS 2023 challenge', 'June 2023',
                 'Nobody et al. 2024'):
        assert link(same) == same
    assert [o.entry for o in citing.citations('Nobody et al. 2024', known)] == [None]

def test_the_first_use_of_a_term_becomes_a_link_to_the_glossary():
    def link(html): return glossary_terms.link_terms(html, 'G')
    assert link('<p>Oracles, and an oracle') == '<p><a href="G#oracle">Oracles</a>, and an oracle'
    assert link('<p>the tug of\nwar') == '<p>the <a href="G#tug-of-war">tug of\nwar</a>'
    for same in ('<code>oracle</code>', '<h2>Margin</h2>', '<p>marginal', '<p>pre-margin',
                 '<span class="math inline">margin</span>'):
        assert link(same) == same
    headings = re.findall('^### (.+)$', markdown(notebooks()['tutorials/glossary.ipynb']), re.M)
    assert set(glossary_terms.terms) <= set(headings)

def test_the_name_of_a_column_is_no_link():
    unlink = glossary_terms.unlink_columns
    assert unlink('[`forget`](a.html#forget) and [`tune`](b.html)') == '`forget` and [`tune`](b.html)'

def test_result_pages_state_the_command_that_repeats_them():
    # Their results are stored, and most tests do not compute them again.
    results = {p: markdown(cells) for p,cells in notebooks().items()
               if p.startswith('experiments/') and p != 'experiments/peers.ipynb'} # which computes nothing
    commands = {p: re.findall('^    (?:RSU_FULL=1 )?(?:make|rsu|jupyter) .+', text, re.M) for p,text in results.items()}
    assert len(results) > 4 and [p for p,found in commands.items() if not found] == []

@pytest.fixture(scope='module')
def docs():
    "The site, newly built"
    made = subprocess.run([sys.executable, root/'.ci/site.py'], capture_output=True, text=True, encoding='utf-8')
    assert made.returncode == 0, made.stdout + made.stderr
    return root/'_docs'

desktop,phone = (dict(width=w, height=900) for w in (1280, 390))

# The elements that are cut off at the right edge of the window: the page does not scroll sideways, only some parts do.
cut_off = '''() => {
    const edge = document.documentElement.clientWidth + 1, scrolls = new Map([[document.body, false]])
    const inScroller = e => {
        if (!scrolls.has(e)) scrolls.set(e, ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
                                            || inScroller(e.parentElement))
        return scrolls.get(e)
    }
    const wide = [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > edge
        && !e.closest('.katex-mathml, .katex svg') && !inScroller(e.parentElement))
    const page = document.documentElement.scrollWidth > edge ? ['the page'] : []
    return page.concat(wide.map(e => e.outerHTML.slice(0, 80)))
}'''
rendered = 'document.querySelectorAll("span.math").length <= document.querySelectorAll(".katex, .katex-error").length'

def facts_of(tab, url):
    "Opens a page: its links, ids, formulas, and what is cut off at two widths"
    tab.set_viewport_size(desktop)
    tab.goto(url, wait_until='load')
    tab.wait_for_function(rendered)
    res = dict(links=tab.eval_on_selector_all('a[href]', 'els => els.map(e => e.href)'),
               ids=tab.eval_on_selector_all('[id]', 'els => els.map(e => e.id)'),
               formulas=tab.locator('.katex').count(), bad_formulas=tab.locator('.katex-error').count(),
               folds=tab.locator('details.code-fold').count(), desktop=tab.evaluate(cut_off))
    tab.set_viewport_size(phone)
    return dict(res, phone=tab.evaluate(cut_off))

@pytest.fixture(scope='module')
def pages(docs):
    "Address of the site, facts on each page with its requests and the complaints of the browser, and a tab"
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
            found = facts_of(tab, home + f.relative_to(docs).as_posix())
            facts[tab.url] = dict(found, requests=list(requests), complaints=list(complaints))
        tab.set_viewport_size(desktop)
        yield home, facts, tab
        browser.close()
    server.shutdown()
    server.server_close()

def test_the_site_builds(docs): assert (docs/'index.html').is_file()

def test_no_link_is_left_as_markdown(docs):
    # A link stays as written where its text has a name in backticks, which nbdev makes a link too, and in signatures.
    link = re.compile(r'\]\((?:[\w/.]+\.ipynb\)|https?:).{,40}')
    assert [f'{f.name}: {o}' for f in docs.rglob('*.html') for o in link.findall(f.read_text(encoding='utf-8'))] == []

def test_pages_link_to_the_references(docs):
    text = (docs/'evaluation/metrics.html').read_text(encoding='utf-8')
    assert '<a href="../references.html#zhao-2024">Zhao et al. 2024</a>' in text

def test_signatures_show_fields_and_all_lines_of_their_comments(docs):
    for page, lines in {
            # a dataclass, a named tuple, what is returned, a method added by `patch`
            'algorithms/unlearn': ['split:ForgetSplit, # The request', '# in use before, MB), how it ended'],
            'evaluation/verdict': ['sentence:str, # What it means, with the figures'],
            'evaluation/two_models': ['probs:Tensor, # Probabilities (S, n, C)', '# below 1/fpr others)'],
            'ranking/bank': ['# The learner whose training set and recipe are used'],
            'evaluation/compare': ['): # `how` with another learning rate']}.items():
        text = html.unescape(re.sub('<[^>]+>', '', (docs/f'{page}.html').read_text(encoding='utf-8')))
        assert [o for o in lines if o not in text] == [], page

def test_columns_of_words_are_marked_and_columns_of_numbers_are_not(docs):
    text = (docs/'algorithms/table.html').read_text(encoding='utf-8')
    assert '<th class="words">what</th>' in text
    text = (docs/'evaluation/evaluate.html').read_text(encoding='utf-8')
    assert '<th class="words">definition</th>' in text and '<th>tow</th>' in text
    assert '<th class="words">tow</th>' not in text

def test_answers_are_folded(docs):
    for page,cells in notebooks().items():
        if page.startswith('_'): continue # a template, which is no page
        answers = [o for o in cells if re.search(r'^#\|\s*code-fold:\s*true', ''.join(o['source']), re.M)]
        text = (docs/_nbpath2html(Path(page))).read_text(encoding='utf-8')
        assert text.count('<details class="code-fold">') == len(answers), page

@in_browser
def test_an_answer_opens_with_what_it_prints(pages):
    home, facts, tab = pages
    tab.goto(next(url for url,p in facts.items() if p['folds']), wait_until='load')
    cell = tab.locator('.cell:has(> details.code-fold):has(> .cell-output)').first
    parts = cell.locator('pre, .cell-output').all()
    assert len(parts) > 1 and not any(o.is_visible() for o in parts)
    cell.locator('summary').click()
    assert all(o.is_visible() for o in parts)

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
    facts = pages[1] # a formula that is not rendered ends the fixture
    assert sum(p['formulas'] for p in facts.values()) > 0
    assert {url for url, p in facts.items() if p['bad_formulas']} == set()

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
@pytest.mark.parametrize('width', ['desktop', 'phone'])
def test_nothing_is_cut_off(pages, width):
    assert {url: p[width] for url, p in pages[1].items() if p[width]} == {}

@in_browser
def test_a_line_of_100_characters_fits(pages):
    home, _, tab = pages
    tab.goto(f'{home}evaluation/evaluate.html', wait_until='load')
    tab.set_viewport_size(dict(width=1440, height=900))
    needs,has = tab.locator('div.sourceCode pre').first.evaluate('''pre => {
        const line = pre.querySelector('code').appendChild(document.createElement('span'))
        line.textContent = '0'.repeat(100)
        const style = getComputedStyle(pre), width = line.getBoundingClientRect().width
        line.remove()
        return [width, pre.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)]
    }''')
    assert 0 < needs <= has

@in_browser
@pytest.mark.parametrize('words, page', [('quickstart', 'quickstart.html'), ('SCRUB', 'teacher.html')])
def test_search_finds_a_page(pages, words, page):
    home, _, tab = pages
    tab.set_viewport_size(desktop)
    tab.goto(home, wait_until='load')
    tab.get_by_role('searchbox').fill(words)
    tab.locator(f'a.search-result[href*="{page}"]').first.click()
    tab.wait_for_url(f'**/{page}*')

@in_browser
def test_the_sidebar_opens_on_a_phone(pages):
    home, _, tab = pages
    tab.set_viewport_size(phone)
    tab.goto(home, wait_until='load')
    link = tab.locator('#quarto-sidebar a.sidebar-link', has_text='Glossary')
    assert link.bounding_box()['x'] < 0 # outside the window
    tab.locator('.quarto-secondary-nav button').first.click()
    link.click()
    tab.wait_for_url('**/glossary.html')
