"Without the packages of an extra the rest works, and one sentence says how to install them."
import json, sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from common import before_its_report, call, clinic_request, request, small, state
from rsu.all import NegGradPlus, mnist1d, tune
from rsu.core.config import InputError
from rsu.core.datasets import _mnist1d
from rsu.core.extras import _packages
from rsu.core.template import write_report

sentence = 'No report will be written, because nbclient is not installed: run pip install "rsu[report]", then repeat'

def hide(patched, name): patched.setitem(sys.modules, name, None) # as if the package were not installed

def test_the_packages_are_those_of_settings_ini():
    parser = ConfigParser(delimiters=['='])
    parser.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    assert _packages == {k: parser['DEFAULT'][f'{k}_requirements'].split() for k in _packages}

@pytest.fixture
def before_report(whole, here):
    "The folder of a run that was stopped after its evaluation"
    return before_its_report(whole.out, here/'out')

def test_a_run_without_a_report_is_complete_and_writes_it_later(before_report, no_report, monkeypatch, capsys):
    def again(): return no_report(*small, '--out', 'out'), capsys.readouterr().out
    with monkeypatch.context() as patched:
        hide(patched, 'nbclient')
        code, printed = again()
        assert code == 0 and printed.startswith(sentence) and '4/5' in printed
        assert '5/5' not in printed and printed.endswith('Results: out\n')
        assert json.loads((before_report/'run.json').read_text(encoding='utf-8'))['done'] is True
        assert not list(before_report.glob('report.*'))
        files = state(before_report)
        code, printed = again()
        assert code == 0 and printed.startswith(sentence) and '1/5' not in printed and state(before_report) == files
    code, printed = again()
    assert code == 0 and 'No report' not in printed and '1/5' not in printed
    assert '5/5' in printed and printed.endswith('Report: out/report.html\n')
    after = state(before_report)
    assert {k: after[k] for k in files} == files and 'report.html' in after.keys() - files.keys()

def test_a_report_of_earlier_results_does_not_stay(before_report, no_report, monkeypatch):
    (before_report/'report.html').write_text('earlier', encoding='utf-8')
    hide(monkeypatch, 'nbclient')
    assert no_report(*small, '--out', 'out') == 0
    assert not (before_report/'report.html').exists()

def test_a_request_is_answered_without_a_page_which_is_written_later(in_clinic, no_page, monkeypatch, capsys):
    asked = *clinic_request, *request('patient-3'), '--out', 'out'
    with monkeypatch.context() as patched:
        hide(patched, 'nbclient')
        assert no_page(*asked) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(sentence) and 'Request 1, 2 samples' in printed and 'Report:' not in printed
    entries = json.loads(Path('out/ledger.json').read_text(encoding='utf-8'))['entries']
    assert len(entries) == 1 and not list(Path('out').glob('report*'))
    assert no_page(*asked) == 0
    assert capsys.readouterr().out.endswith('Report: out/report-0001.html\n')
    assert json.loads(Path('out/ledger.json').read_text(encoding='utf-8'))['entries'] == entries

def test_a_search_is_rejected_before_any_work(learn, split, here, monkeypatch, capsys):
    hide(monkeypatch, 'optuna')
    words = 'Settings cannot be searched, because optuna is not installed: run pip install "rsu[tune]".'
    assert call('tune', '--data', 'digits', '--algorithm', 'scrub', '--out', 'out') == 2
    printed = capsys.readouterr()
    assert printed.out == '' and printed.err == f'rsu: {words}\n'
    with pytest.raises(InputError, match='pip install "rsu.tune."'): tune(learn, split, NegGradPlus(), path='out')
    assert not list(here.iterdir())

def test_writing_a_report_is_rejected(tmp_path, monkeypatch):
    for name in ('nbformat', 'ipykernel'): hide(monkeypatch, name)
    with pytest.raises(InputError, match='because nbformat and ipykernel are not installed: run pip install "rsu.rep'):
        write_report(tmp_path)

def test_mnist1d_names_the_extra(monkeypatch):
    hide(monkeypatch, 'mnist1d')
    _mnist1d.cache_clear()
    with pytest.raises(InputError, match='MNIST-1D cannot be generated, because mnist1d is not installed: run pip'):
        mnist1d()
