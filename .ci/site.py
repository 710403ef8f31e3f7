"""Builds the documentation into _docs, without the Quarto program.

nbdev processes the notebooks, and smalldocs makes the pages.
"""
import os, re, shutil, sys
from dataclasses import is_dataclass
from functools import partial, reduce
from importlib import import_module
from itertools import count
from pathlib import Path

import fastcore.docments
import nbdev.processors
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.layout import KATEX
from smalldocs.site import build

from rsu.core.docstrings import comments_of
from citations import entries, link_citations
from terms import link_terms, unlink_columns

root = Path(__file__).resolve().parent.parent

def packaged(o):
    "What the package has by the name of a function or class that a notebook defined; None if there is nothing"
    if o.__module__ != '__main__': return o
    found = NbdevLookup()[o.__qualname__]
    if not isinstance(found, tuple): return None
    module = import_module(found[1].removesuffix('.py').replace('/', '.'))
    return reduce(getattr, o.__qualname__.split('.'), module)

def with_whole_comments(docments):
    "The parameters of a function or class with all lines of their comments; fastcore reads the first line of each"
    def documented(o, full=False, **kwargs):
        res = docments(o, full=full, **kwargs)
        for k, lines in comments_of(packaged(o) or o).items():
            # fastcore puts a # before the further lines of a parameter, but not of what is returned
            if full and k in res: res[k]['docment'] = ('\n# ' if k == 'return' else '\n').join(lines)
        return res
    return documented

def linkify(text):
    "Markdown in which the package's names are links, but not those that are part of a link's text"
    lookup = NbdevLookup()
    links = re.split(r'(\[[^][]*`[^][]*\]\([^)]*\))', text)
    linked = (part if i % 2 else lookup.linkify(part) or part for i, part in enumerate(links))
    return unlink_columns(''.join(linked))

def add_links(cell):
    "Link the package's names in prose only: nbdev would also put links into signatures, which show them as text."
    if cell.cell_type == 'markdown': cell.source = linkify(cell.source)
    for o in cell.get('outputs', []):
        if md := ''.join(o.get('data', {}).get('text/markdown', '')):
            o['data']['text/markdown'] = linkify(md).splitlines(True)

def process():
    "Fill _proc with the notebooks as pages: exported code becomes its documentation, hidden cells go."
    nbdev.processors.add_links = add_links
    fastcore.docments.docments = with_whole_comments(fastcore.docments.docments)
    # In a notebook a class has no source. And a named tuple is called with its fields, as a dataclass is.
    fastcore.docments.get_dataclass_source = lambda cls: ''
    fastcore.docments.is_dataclass = lambda cls: is_dataclass(cls) or hasattr(cls, '_fields')
    refresh_quarto_yml()
    # One process imports fastai once, not once per notebook.
    # Every page is built again, so that a deleted notebook leaves no page.
    proc = proc_nbs(n_workers=0, force=True)
    return proc

def page_names(proc):
    "Each page's name in smalldocs and in nbdev's links: `tutorials/01_quickstart.html`, `tutorials/quickstart.html`."
    res = {}
    for p in proc.rglob('*.ipynb'):
        name = re.search(r'output-file: (\S+\.html)', p.read_text(encoding='utf-8'))
        if name: res[p.relative_to(proc).with_suffix('.html')] = p.relative_to(proc).with_name(name[1])
    return res

_cell = re.compile(r'<(t[hd])([^>]*)>(.*?)</\1>', re.S)

def is_word(text):
    "Does a cell of a table hold more than a number, alone or with its interval?"
    text = re.sub('<[^>]+>', '', text).strip().lower()
    return re.fullmatch(r'[-+]?(\d[\d.,:e+-]*|nan|inf|nat|none)?(\s*±\s*[\d.]+)?%?', text) is None

def mark_words(table):
    "The HTML of a data frame whose columns of words have the class `words`, so that they are read from the left"
    if 'colspan' in table[0] or 'rowspan' in table[0]: return table[0]
    rows = [_cell.findall(o) for o in re.findall('<tr.*?</tr>', table[0], re.S)]
    words = {i for row in rows for i,(kind,_,text) in enumerate(row) if kind == 'td' and is_word(text)}
    def marked_row(row):
        columns = count()
        def marked(cell):
            return cell[0].replace(f'<{cell[1]}', f'<{cell[1]} class="words"', 1) if next(columns) in words else cell[0]
        return _cell.sub(marked, row[0])
    return re.sub('<tr.*?</tr>', marked_row, table[0], flags=re.S)

code_link = re.compile(r'<a href="([^"#:]*)#([^"]+)">(<code>[^<]*</code>)</a>')

def documented(page, sections, link):
    "A link on `page` if the section that it names exists, else its text"
    to = (page.parent/link[1]).resolve() if link[1] else page
    return link[0] if link[2] in sections.get(to, ()) else link[3]

def unlink_undocumented(docs):
    "Take out links to names that have no section: nbdev links every exported name, documented or not."
    pages = {p: p.read_text(encoding='utf-8') for p in docs.rglob('*.html')}
    sections = {p.resolve(): set(re.findall(r'\bid="([^"]+)"', text)) for p, text in pages.items()}
    for p, text in pages.items():
        p.write_text(code_link.sub(partial(documented, p.resolve(), sections), text), encoding='utf-8')

def finish(docs, names):
    "Give the pages their names, align tables, link citations and terms, and keep links and requests within the site."
    shutil.copytree(root/'.ci/katex', docs/'site_libs/katex')
    cited = entries()
    home = f'{get_config().doc_host}{get_config().doc_baseurl}/'
    for old, new in names.items(): (docs/old).rename(docs/new)
    for p in [*docs.rglob('*.html'), docs/'search.json', docs/'sitemap.xml']:
        text = p.read_text(encoding='utf-8')
        for old, new in names.items(): text = re.sub(rf'(?<![\w-]){re.escape(old.name)}', new.name, text)
        if p.suffix == '.html':
            up = os.path.relpath(docs, p.parent)
            text = text.replace(KATEX, f'{up}/site_libs/katex').replace(f'<a href="{home}', f'<a href="{up}/')
            text = re.sub('<table[^>]*class="dataframe.*?</table>', mark_words, text, flags=re.S)
            if p.name != 'references.html': text = link_citations(text, cited, f'{up}/references.html')
            if p.name != 'glossary.html': text = link_terms(text, f'{up}/tutorials/glossary.html')
        p.write_text(text, encoding='utf-8')
    unlink_undocumented(docs)

def main():
    os.chdir(root)
    proc = process()
    names = page_names(proc)
    site = build(proc, quiet=True)
    # These are what `smalldocs check` prints. It does not read output-file; `finish` does.
    complaints = [w for w in site.warnings if 'output-file is not read' not in w]
    finish(proc/'_docs', names)
    shutil.rmtree('_docs', ignore_errors=True)
    shutil.move(proc/'_docs', '_docs')
    for c in complaints: print(c, file=sys.stderr)
    print(f'{len(names)} pages in _docs, {len(complaints)} complaints of smalldocs')
    return 1 if complaints else 0

if __name__ == '__main__': sys.exit(main())
