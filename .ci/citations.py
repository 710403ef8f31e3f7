"""Citations such as `Zhao et al., NeurIPS 2024`, and the entries of nbs/references.ipynb that they name."""
import json, re
from pathlib import Path
from typing import NamedTuple

references = Path(__file__).resolve().parent.parent/'nbs/references.ipynb'

class Entry(NamedTuple):
    "An entry of the references"
    author:str # Surname of the first author
    year:str
    extra:str  # Second author or venue, if the author has two entries of the year
    anchor:str # Anchor of its heading

_heading = re.compile(r'^### ((?P<author>\S+)(?: and (?P<second>\S+))? (?P<year>\d{4})(?: (?P<venue>\S+))?)$', re.M)

def entries():
    "All entries, read from the headings of the page"
    cells = json.loads(references.read_text(encoding='utf-8'))['cells']
    found = _heading.finditer('\n'.join(''.join(o['source']) for o in cells))
    return [Entry(m['author'], m['year'], m['second'] or m['venue'] or '', m[1].lower().replace(' ', '-'))
            for m in found]

_name = r"[A-Z][^\W\d_]*[a-z](?:-[A-Z][a-z]+)?"
_others = rf"(?:,?\s+et\s+al\.?|(?:,\s+{_name})*,?\s+(?:&(?:amp;)?|and)\s+{_name})"
_title = r"['’]s [a-z]+(?: [a-z]+)*" # Feldman's memorization score (STOC 2020)
_venue = r"(?:[A-Z][\w&;/]*\s+){0,4}"
_citation = re.compile(rf"(?<![\w-])(?P<author>{_name})(?:{_others})?(?:{_title})?,?\s+"
                       rf"(?P<open>\(?){_venue}(?P<year>(?:19|20)\d\d)(?![\w-])(?P<close>\)?)")
_not_authors = {'January','February','March','April','May','June','July','August','September','October','November',
                'December','After','Before','In','Since','Until'}

class Citation(NamedTuple):
    "A citation in a text"
    text:str         # As it is written
    start:int        # Its place in the text
    entry:Entry|None # None if the references do not have it

def _entry_of(m, known):
    "The entry that a match cites; where an author has two of a year, the one whose second author or venue is named"
    same = [o for o in known if (o.author, o.year) == (m['author'], m['year'])]
    named = [o for o in same if o.extra and re.search(rf'\b{o.extra}\b', m[0])]
    return next(iter(named or [o for o in same if not o.extra]), None)

def _without_open_bracket(m):
    "The text of a match. A bracket that closes only after it is left out, with what it contains"
    if m['open'] and not m['close']: return m.string[m.start():m.start('open')].rstrip()
    return m[0] if m['open'] else m[0].removesuffix(')')

def citations(text, known):
    "The citations in a text"
    return [Citation(_without_open_bracket(m), m.start(), _entry_of(m, known))
            for m in _citation.finditer(text) if m['author'] not in _not_authors]

def _linked(text, known, to):
    "A text in which the citations are links to the entries on the page `to`"
    res,end = [],0
    for text_of,start,entry in citations(text, known):
        if entry is None: continue
        res += [text[end:start], f'<a href="{to}#{entry.anchor}">{text_of}</a>']
        end = start+len(text_of)
    return ''.join([*res, text[end:]])

_markup = re.compile(r'(<!--.*?-->|<(?:script|style)\b.*?</(?:script|style)>|<span class="math.*?</span>|<[^>]+>)',
                     re.S)
_no_links = {'a','button','code','pre','title','h1','h2','h3','h4','h5','h6'}

def in_prose(page, change):
    "The HTML of a page after `change` of every piece of text in which a link may stand"
    parts,inside = _markup.split(page),0 # how many of the open elements may not contain a link
    for i,part in enumerate(parts):
        tag = re.match(r'<(/?)(\w+)', part)
        if tag and tag[2] in _no_links: inside += -1 if tag[1] else 1
        elif i % 2 == 0 and not inside: parts[i] = change(part)
    return ''.join(parts)

def link_citations(page, known, to):
    "The HTML of a page in which the citations in prose and tables are links to the entries on the page `to`"
    return in_prose(page, lambda text: _linked(text, known, to))
