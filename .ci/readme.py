"""Makes README.md from nbs/index.ipynb, without the Quarto program.

GitHub shows it, so its links lead to files of the repository.
"""
import re

import nbformat
from execnb.nbio import nb2str
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults

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
    site = f'{cfg.doc_host}{cfg.doc_baseurl}'
    pages = {f'{site}/{_nbpath2html(p.relative_to(nbs)).as_posix()}': p.relative_to(nbs).as_posix()
             for p in nbs.rglob('*.ipynb')}
    def link(m):
        to = pages.get(m[1].partition('#')[0], m[1])
        return m[0] if re.match(r'\w+:|#', to) else f']({nbs.name}/{to})'
    text = re.sub(r'\]\(([^)\s]+)\)', link, text)
    text = re.sub(r'<style scoped>.*?</style>\n', '', text, flags=re.S)  # GitHub drops it
    text = re.sub(r'\n\s*\n\s*\n', '\n\n', text.strip()) + '\n'
    return {'README.md': text.encode()} | {f'{nbs.name}/{name}': data for name, data in found['outputs'].items()}

def main():
    root = get_config().config_path
    files = render()
    for old in get_config().nbs_path.glob('images/readme_*'): old.unlink()
    for name, data in files.items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(data)

if __name__ == '__main__': main()
