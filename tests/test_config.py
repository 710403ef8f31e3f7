"Constraints, values and the check of error messages: the edge cases."
import inspect, json

import numpy as np, pytest

from rsu.core.config import (Constraint, InputError, Interval, Momentum, NonNegativeInt, Options, PositiveFloat,
                             PositiveInt, Share, TupleOf, Value, choose, constraint_of, expect_error)

def raised(error, words):
    with expect_error(words):
        if error: raise error

def refused(words, constraint, *values):
    for value in values:
        with pytest.raises(InputError) as e: constraint.check('x', value)
        assert words in str(e.value)

def test_expect_error_fails_without_the_error_or_its_words():
    with pytest.raises(AssertionError, match='No InputError was raised'): raised(None, '')
    with pytest.raises(AssertionError, match="'two' is not in 'one'"): raised(InputError('one'), 'two')
    with pytest.raises(ValueError, match='one'): raised(ValueError('one'), 'one')

def test_choose():
    assert choose('ranker', 'lira', dict(lira=1)) == 1
    with pytest.raises(InputError, match='choose one of lira, random'): choose('ranker', 'zzz', ['lira', 'random'])

def test_numbers():
    for value in (np.int64(3), np.uint8(3)): assert type(PositiveInt.check('n', value)) is int
    assert type(Share.check('p', np.float32(.5))) is float and str(Share.check('p', -0.)) == '0.0'
    refused('must be a whole number in [1, inf)', PositiveInt,
            0, -1, 2.5, 3., np.float64(3), None, '3', True, np.bool_(True), 2**70, [3], np.array(3.5))
    refused('must be a number in [0, 1]', Share,
            -1e-9, 1+1e-9, float('nan'), float('inf'), None, '0', False, 1e308, 10**400, 1j)
    refused('no larger than 3.4e+38', PositiveFloat, 1e308, 10**400)
    refused('no larger than 9.22337e+18', PositiveInt, 2**70)

def test_the_nearest_allowed_number():
    assert [PositiveFloat.clip(v) > 0 for v in (-1, 0, 1)] == [True]*3 and Interval(int, 0, 9, 'neither').clip(9) == 8
    assert Share.clip(2) == 1 and Momentum.clip(1) in Momentum and NonNegativeInt.clip(-3) == 0

def test_tuples_and_options():
    numbers = TupleOf(NonNegativeInt)
    assert numbers.check('decay', np.array([3,5])) == (3,5) == numbers.check('decay', [3,5])
    refused('a tuple of items, each a whole number', numbers, 3, (3,-1), 'ab', None, np.array(3))
    refused('a tuple of 1 or more items', TupleOf(float, least=1), ())
    refused('...', Options('a'), ['a'*500])

def test_types_and_inheritance():
    assert repr(str|PositiveInt|None) == 'str | int in [1, inf) | None'
    assert repr(None|PositiveInt) == 'None | int in [1, inf)'
    assert constraint_of(int|None).inherit(PositiveInt).check('n', None) is None
    refused('in [1, inf)', constraint_of(int|None).inherit(PositiveInt), 0)
    assert constraint_of(str).inherit(Options('a')).words == "'a'"
    assert constraint_of(tuple).check('t', ['a']) == ('a',)
    assert constraint_of(tuple).inherit(TupleOf(Share)).words == TupleOf(Share).words
    refused('give an instance such as Options()', constraint_of(Constraint), Options)

class Scaled(Value):
    scale:Interval(float, 0)=2.
    n:int=1

class Rescaled(Scaled): scale:float=1.

class Postponed(Value): # as in a module with `from __future__ import annotations`
    n:'PositiveInt'=1
    other:'Unknown'=None # noqa: F821
    none:float=None

class _Private(Value): pass

def test_annotations_that_are_text():
    assert Postponed(other=[3]).other == [3] and Postponed().none is None
    with pytest.raises(InputError, match=r'n=0 must be a whole number in \[1, inf\)'): Postponed(n=0)
    with pytest.raises(InputError, match="none='a' must be a finite number or None"): Postponed(none='a')

def test_the_signature_shows_inherited_constraints():
    assert repr(inspect.signature(Rescaled).parameters['scale'].annotation) == 'float in [0, inf)'

def test_json_of_another_version_or_a_private_class():
    with pytest.raises(InputError, match="Scaled has no setting 'salt': it has scale, n"):
        Value.from_json(json.dumps(dict(Scaled().to_dict(), salt=1)))
    with pytest.raises(InputError) as e: Value.from_json(_Private().to_json())
    assert '_Private' not in str(e.value).split(':', 1)[1] # a private class is not suggested
