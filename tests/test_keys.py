"The keys under which results are stored name no module and do not change between versions."
import subprocess, sys

import pytest
from rsu.all import (SCRUB, Confidence, Labelled, NegGradPlus, Recipe, SFRon, SeqUnlearn, cifar_resnet18, digits,
                     fashion_mnist, mlp, rankers, small_cnn)
from rsu.app.settings import Settings
from rsu.core.config import decode, _encode

# With another key no stored bank, oracle or search is found again: change a key only on purpose.
values = {
    'c7f0f19b9f80': Recipe(small_cnn, n_epoch=10, lr=3e-3),
    'fb80366e568e': Recipe(mlp, n_epoch=2, lr=.01, bs=32, seed=7),
    'b894aa1e3929': SCRUB(n_epoch=3, lr=1e-3),
    '38e4088cc5c8': SeqUnlearn(NegGradPlus(), groups=4, order='ascending', rerank=Confidence),
    '34cc18fb151e': SeqUnlearn(SFRon(), groups=Labelled(('a', 'b', 'b')), schedule='whole'),
    'cfa2980acdab': Settings(data='digits', forget='random:60', algorithm='scrub'),
}

@pytest.mark.parametrize('key', values)
def test_a_key_does_not_change(key): assert values[key].key == key

@pytest.mark.parametrize('key', values)
def test_json_names_no_module(key):
    text = values[key].to_json()
    assert 'rsu.' not in text and type(values[key]).from_json(text) == values[key]

@pytest.mark.parametrize('f', [digits, fashion_mnist, small_cnn, cifar_resnet18, mlp, *rankers().values()])
def test_functions_are_stored_by_name(f):
    assert _encode(f) == {'function': f.__name__} and decode(_encode(f)) is f

def test_reading_a_value_imports_its_classes():
    # in a process that has imported none of the classes
    code = 'import sys; from rsu.core.config import Value; print(*(Value.from_json(o).key for o in sys.argv[1:]))'
    done = subprocess.run([sys.executable, '-c', code, *(o.to_json() for o in values.values())],
                          capture_output=True, text=True, encoding='utf-8')
    assert done.stdout.split() == [*values], done.stderr
