"Every constrained field and every constrained parameter accepts what its declaration allows and refuses the rest."
import dataclasses, importlib, inspect, math, pkgutil

import pytest
import rsu
from rsu.all import *
from rsu.core.config import InputError, Interval, Options, TupleOf, value_classes

def modules():
    names = [o.name for o in pkgutil.walk_packages(rsu.__path__, 'rsu.')
             if not o.name.endswith(('_modidx', '__main__'))]
    return [importlib.import_module(name) for name in names]

def functions():
    "All functions and methods whose arguments are checked, by name"
    res = {}
    for module in modules():
        for name, o in vars(module).items():
            of = vars(o).items() if inspect.isclass(o) and o.__module__.startswith('rsu') else [(name, o)]
            for k, f in of:
                f = getattr(f, '__func__', f)
                if hasattr(f, 'constraints') and inspect.isfunction(f) and f.constraints:
                    res[f'{f.__module__}.{f.__qualname__}'] = f
    return res

needed = dict(network=small_cnn, algorithm=FineTune(), at=(1.,), labels=('a',), role='forget', how=SISA(),
              recipe=Recipe(small_cnn), sha='0'*12, n=2) # of fields without a default

def make(cls, name, value):
    bare = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    return cls(**{**{k: needed[k] for k in bare}, name: value})

modules() # which registers all value classes
values = {k: v for k, v in value_classes.items() if v.__module__.startswith('rsu.') and k[0] != '_'}
fields = [(kind, name) for kind, cls in values.items() for name in cls.constraints()]
parameters = [(f, name) for f, o in functions().items() for name in o.constraints]

def bad(constraint):
    "Values that the constraint must refuse, by its declaration"
    res = [True, math.nan, math.inf, -math.inf, 'no such word', None, 10**400, 1e308, [object()], 1j]
    for o in constraint.alternatives:
        if isinstance(o, Interval):
            tiny = 1 if o.kind is int else 1e-9
            if o.low > -math.inf: res += [o.least-tiny, o.low-1] + ([o.low] if o.low not in o else [])
            if o.high < math.inf: res += [o.most+tiny, o.high+1] + ([o.high] if o.high not in o else [])
            if o.kind is int: res += [o.least+.5, str(o.least)] if o.low > -math.inf else [.5, '1']
    return [v for v in res if not allowed(constraint, v)]

def allowed(constraint, value):
    "Does the declaration allow the value? Independent of the code that checks values"
    return any(_allowed(o, value) for o in constraint.alternatives)

def _allowed(o, value):
    if isinstance(o, Interval):
        if isinstance(value, (bool, str, list, complex)) or value is None: return False
        if o.kind is int: return isinstance(value, int) and o.least <= value <= o.most and abs(value) < 2**63
        return abs(value) <= 3.4e38 and o.least <= value <= o.most # both are false for NaN
    if isinstance(o, Options): return value in o.names
    if isinstance(o, TupleOf): return False # no value in `bad` is a valid tuple
    return o.kind is None or isinstance(value, o.kind)

def good(constraint):
    "Values that the constraint must accept: the ends of intervals, the options, and None where it is allowed"
    for o in constraint.alternatives:
        if isinstance(o, Interval): yield from [v for v in (o.least, o.most) if math.isfinite(v)]
        if isinstance(o, Options): yield from o.names
        if o.kind is type(None): yield None

# without fields that accept any object
refusing = [(kind, name) for kind, name in fields if bad(values[kind].constraints()[name])]
@pytest.mark.parametrize('kind, name', refusing)
def test_a_field_refuses_values_outside_its_declaration(kind, name):
    cls = values[kind]
    constraint = cls.constraints()[name]
    for value in bad(constraint):
        with pytest.raises(InputError) as e: make(cls, name, value)
        assert name in str(e.value) and str(e.value).count('\n') == 0, (value, str(e.value))

# fields whose value a condition on another field forbids, and settings that a class refuses altogether
between = {('Retrain', 'bs_forget'), ('SFRon', 'iters'), ('SFRon', 'every'),
           *(('SISA', k) for k in Retrain.constraints())}
idle = 'n_epoch lr bs_forget opt mom wd'.split()
between |= {(kind, k) for kind in ('SSD', 'LFSSD', 'Fisher', 'Influence') for k in idle}

bounded = [(kind, name) for kind, name in fields if [*good(values[kind].constraints()[name])]]
@pytest.mark.parametrize('kind, name', [o for o in bounded if o not in between])
def test_a_field_accepts_its_bounds_and_options(kind, name):
    cls = values[kind]
    for value in good(cls.constraints()[name]):
        one = make(cls, name, value)
        assert getattr(one, name) == value and type(one).from_json(one.to_json()) == one

def test_most_numbers_have_constraints():
    # fails where fields or parameters lose their constraints
    numbers = [o for o in fields if values[o[0]].constraints()[o[1]].interval]
    assert len(numbers) >= 200 and len(parameters) >= 80, (len(numbers), len(parameters))

refusing = [(f, name) for f, name in parameters if bad(functions()[f].constraints[name])]
@pytest.mark.parametrize('function, name', refusing)
def test_a_parameter_refuses_values_outside_its_declaration(function, name):
    # all other arguments are None: the refusal must come before they are used
    f = functions()[function]
    others = [p for k, p in inspect.signature(f).parameters.items() if k != name and p.default is p.empty
              and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and k not in f.constraints]
    for value in bad(f.constraints[name]):
        if value is inspect.signature(f).parameters[name].default: continue
        rest = {p.name: None for p in others}
        rest.update({k: 1 for k, c in f.constraints.items() if k != name
                     and inspect.signature(f).parameters[k].default is inspect.Parameter.empty})
        with pytest.raises(InputError, match=f'^{name}='): f(**rest, **{name: value})

# bad arguments that users have reported
seeds = [-1, 1.5, None, 2**70]
@pytest.mark.parametrize('call', [
    *((lambda s=s: digits(n=100, seed=s)) for s in seeds), *((lambda s=s: Recipe(small_cnn, seed=s)) for s in seeds),
    *((lambda s=s: Random(seed=s)) for s in seeds), *((lambda s=s: SeqUnlearn(FineTune(), seed=s)) for s in seeds),
    lambda: FineTune(n_epoch=10**9), lambda: FineTune(lr=1e308), lambda: FineTune(lr=math.inf),
    lambda: Recipe(small_cnn, n_epoch=10**9), lambda: Recipe(small_cnn, lr=1e308), lambda: RMIA(None, gamma=math.nan),
    lambda: Curvature(h=0), lambda: digits(n=0), lambda: digits(bs=0)])
def test_reported_bad_arguments_are_refused(call):
    with pytest.raises(InputError, match='^(seed|n_epoch|lr|gamma|h|n|bs)=.* must be'): call()
