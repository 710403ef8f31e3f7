"""Do the sdist and the wheel in a folder contain what they should, and nothing else? `python .ci/packed.py dist`"""
import sys, tarfile, zipfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
beside = {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'CHANGELOG.md', 'CITATION.cff',
          'MANIFEST.in', 'setup.cfg', 'PKG-INFO'}

def of_package():
    "The files of the package, as they are in the repository"
    found = (p for p in (root/'rsu').rglob('*') if p.is_file() and '__pycache__' not in p.parts)
    return {p.relative_to(root).as_posix() for p in found}

def contents(dist):
    "The files of the sdist and those of the wheel, without what tools write for themselves"
    (sdist,), (wheel,) = dist.glob('*.tar.gz'), dist.glob('*.whl')
    with tarfile.open(sdist) as f: in_sdist = {o.name.partition('/')[2] for o in f if o.isfile()}
    with zipfile.ZipFile(wheel) as f: in_wheel = set(f.namelist())
    return {sdist.name: {o for o in in_sdist if '.egg-info/' not in o},
            wheel.name: {o for o in in_wheel if '.dist-info/' not in o}}

def main(dist):
    expected = of_package() | beside, of_package()
    wrong = []
    for (name, found), should in zip(contents(Path(dist)).items(), expected):
        wrong += [f'{name} lacks {o}' for o in sorted(should - found)]
        wrong += [f'{name} contains {o}' for o in sorted(found - should)]
        print(f'{name}: {len(found)} files')
    print('\n'.join(wrong), file=sys.stderr)
    return 1 if wrong else 0

if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
