"The package's metadata, read from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
code = cfg['git_url']
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}
for name in ('docs', 'dev'): # contain the extras that settings.ini lists before them
    before = list(extras)[:list(extras).index(name)]
    extras[name] = [*dict.fromkeys(o for k in (*before, name) for o in extras[k])]

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license_expression=cfg['license'],
    license_files=['LICENSE'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    keywords=cfg['keywords'].split(),
    classifiers=cfg['classifiers'].strip().splitlines(),
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': code, 'Issues': f'{code}/issues',
                  'Changelog': f'{code}/blob/{cfg["branch"]}/CHANGELOG.md'},
    python_requires=f'>={cfg["min_python"]}',
    packages=find_packages(include=[cfg['lib_path'], f'{cfg["lib_path"]}.*']),
    package_data={cfg['lib_path']: cfg['package_data'].split()},
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': [cfg['console_scripts']],
        # Where nbdev finds rsu's symbols when another project's documentation names them.
        'nbdev': [f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d'],
    },
    zip_safe=False,
)
