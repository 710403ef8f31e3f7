"""Makes README.md from nbs/index.ipynb, without the Quarto program.

A package index shows it, too, so all its links are absolute: to pages of the site, and to files of the repository.
"""
import re
from pathlib import Path
from posixpath import normpath
from urllib.parse import quote

import nbformat
from execnb.nbio import nb2str
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults
from terms import unlink_columns

def homes(cfg):
    "Where the site, the files of the repository and its pictures are"
    pictures = cfg.git_url.replace('https://github.com', 'https://raw.githubusercontent.com')
    return f'{cfg.doc_host}{cfg.doc_baseurl}/', f'{cfg.git_url}/blob/{cfg.branch}/', f'{pictures}/{cfg.branch}/'

def badges(cfg):
    "The first line below the title. The site has no badges, because it requests nothing from other hosts."
    site, files, _ = homes(cfg)
    workflow = f'{cfg.git_url}/actions/workflows/test.yml'
    def static(label, value):
        label, value = (quote(o.replace('-', '--'), safe='') for o in (label, value))
        return f'https://img.shields.io/badge/{label}-{value}-blue'
    shown = [('Tests', f'{workflow}/badge.svg', workflow),
             (f'Python {cfg.min_python} or newer', static('python', f'{cfg.min_python}+'), f'{files}settings.ini'),
             (f'Licence {cfg.license}', static('licence', cfg.license), f'{files}LICENSE'),
             ('Documentation', static('documentation', 'site'), site)]
    return '\n'.join(f'[![{name}]({picture})]({to})' for name, picture, to in shown)

def absolute(to, is_picture, cfg):
    "The absolute address of what a link in the index names"
    if re.match(r'\w+:|#', to): return to
    site, files, pictures = homes(cfg)
    name, hash_sign, section = to.partition('#')
    if (cfg.nbs_path/name).is_file() and name.endswith('.ipynb'):
        return f'{site}{_nbpath2html(Path(name)).as_posix()}{hash_sign}{section}'
    return (pictures if is_picture else files) + normpath(f'{cfg.nbs_path.name}/{to}')

def show_once(text):
    "Text in which an output that is shown elsewhere, with its own caption, is not shown a second time"
    return re.sub(r'!\[png\]\(([^)\s]+)\)\n', lambda m: '' if text.count(f']({m[1]})') > 1 else m[0], text)

def render():
    "What the index gives: `{'README.md': bytes, 'nbs/images/readme_7_0.png': bytes}`, the latter drawn by its cell 7."
    cfg = get_config()
    nbs = cfg.nbs_path
    # FrontmatterProc would turn the title into front matter, which GitHub shows as a table.
    proc = NBProcessor(nbs/'index.ipynb', procs=FilterDefaults().procs().filter(lambda p: p is not FrontmatterProc))
    proc.process()
    nb = nbformat.reads(nb2str(proc.nb), as_version=4)
    nb.metadata.language_info = dict(name='python')
    text, found = MarkdownExporter().from_notebook_node(nb, dict(unique_key='readme', output_files_dir='images'))
    text = show_once(unlink_columns(text))
    text = re.sub(r'^#\| .*\n', '', text, flags=re.M)  # directives, which mean something to Quarto alone
    text = re.sub(r'(!?)(\[[^][]*\])\(([^)\s]+)\)', lambda m: f'{m[1]}{m[2]}({absolute(m[3], bool(m[1]), cfg)})', text)
    text = re.sub(r'<style scoped>.*?</style>\n', '', text, flags=re.S)  # GitHub drops it
    title, text = text.strip().split('\n', 1)
    text = re.sub(r'\n\s*\n\s*\n', '\n\n', f'{title}\n\n{badges(cfg)}\n\n{text}') + '\n'
    return {'README.md': text.encode()} | {f'{nbs.name}/{name}': data for name, data in found['outputs'].items()}

def main():
    root = get_config().config_path
    files = render()
    for old in get_config().nbs_path.glob('images/readme_*'): old.unlink()
    for name, data in files.items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(data)

if __name__ == '__main__': main()
