"A file that is written again is replaced as a whole: a process that has it open still reads the old content."
import json, os

import pandas as pd, pytest, torch
from rsu.core.store import write_json, write_shard, write_table
from rsu.erasure import ledger
from rsu.evaluation import tune
from rsu.ranking import bank

def shard(file, n): write_shard(file, dict(a=torch.full((9,), float(n))))
def note(file, n): write_json(file, dict(a=n), 'note')
def table(file, n): write_table(file, pd.DataFrame(dict(a=[n])), 'rows')

def copy(file, n):
    source = file.parent.parent/'source'
    source.write_text(f'{n}'*9, encoding='utf-8')
    bank._copy(source, file)

def key(file, n): os.replace(ledger._write_key(file, b'k'*32, n), file)

def journal(file, n):
    "First a file whose last line a killed process left unfinished, then its repair"
    if n == 1: file.write_text('{"a": 1}\n{"a"', encoding='utf-8')
    else: tune._repair_journal(file.parent)

@pytest.mark.parametrize('write', [shard, note, table, copy, key, journal], ids=lambda o: o.__name__)
def test_a_second_write_replaces_the_whole_file(write, tmp_path, capsys):
    folder = tmp_path/'folder'
    folder.mkdir()
    file = folder/('search.jsonl' if write is journal else 'a.json')
    write(file, 1)
    before = file.read_bytes()
    with open(file, 'rb') as reader:
        write(file, 2)
        assert reader.read() == before
    assert file.read_bytes() != before
    assert [o.name for o in folder.iterdir() if o.suffix != '.lock'] == [file.name]

def test_a_second_write_replaces_the_whole_ledger(tmp_path):
    book = ledger.Ledger(tmp_path/'a')
    book._write(dict(entries=[]))
    with open(book.file, 'rb') as reader:
        before = book.file.read_bytes()
        book._write(dict(entries=[], by='person'))
        assert reader.read() == before and json.loads(book.file.read_text(encoding='utf-8'))['by'] == 'person'
