"""Terms that a newcomer does not know: the first one of each kind on a page is a link to the glossary."""
import re

from citations import in_prose

# Headings of nbs/tutorials/glossary.ipynb. Words with their usual meaning, such as group, are not among them.
terms = ['oracle', 'reference model', 'reference bank', 'margin', 'nats', 'EL2N', 'tug of war', 'LiRA', 'RMIA',
         'membership inference', 'memorization', 'privacy risk', 'pending group', 'entanglement', 'TPR at FPR',
         'attack AUC', 'one-shot', 'retain set', 'forget set', 'machine unlearning']
# Columns of the table of results, some of which are also names of functions.
_columns = ['runs', 'forget', 'retain', 'test', 'tow', 'auc', 'tpr', 'z', 'steps', 'seconds', 'ratio', 'shuffled',
            'reversed']
_column_link = re.compile(rf"\[(`(?:{'|'.join(_columns)})`)\]\([^)]*\)")
_anchors = {o.lower(): o.lower().replace(' ', '-') for o in terms}
_term = re.compile(rf"(?<![\w-])({'|'.join(o.replace(' ', chr(92)+'s+') for o in terms)})s?(?![\w-])", re.I)

def unlink_columns(text):
    "Markdown in which the name of a column is no link to the function of this name"
    return _column_link.sub(r'\1', text)

def link_terms(page, to):
    "The HTML of a page in which the first use of each term in prose is a link to its entry on the page `to`"
    seen = set()
    def link(m):
        name = ' '.join(m[1].lower().split())
        if name in seen: return m[0]
        seen.add(name)
        return f'<a href="{to}#{_anchors[name]}">{m[0]}</a>'
    return in_prose(page, lambda text: _term.sub(link, text))
