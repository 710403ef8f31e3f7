"Layers, sets and networks that the page on representations does not show."
import numpy as np, pytest, torch
from rsu.algorithms.unlearn import unlearn
from rsu.algorithms.base import FineTune
from rsu.core.config import InputError
from rsu.evaluation.representations import (_as_features, barrier_columns, cka, cka_by_layer, layer_features,
                                            loss_barrier, probe_columns)
from rsu.core.outputs import predict_train
from rsu.core.split import ForgetSplit

def test_the_last_layer_is_the_logits_of_the_same_samples(learn, split):
    features = [*layer_features(learn.model, split).values()]
    logits, _ = predict_train(learn.model, split.dls, split.forget)
    assert torch.equal(features[-1], logits) and {len(o) for o in features} == {len(split)}

def test_large_maps_are_averaged():
    x = torch.arange(2.*64*16*16).view(2, 64, 16, 16)
    out = _as_features(x)
    assert out.shape == (2, 64*8*8)
    assert torch.allclose(out[0].view(64, 8, 8)[0, 0, 0], x[0, 0, :2, :2].mean())
    small = torch.rand(2, 4, 8, 8)
    assert torch.equal(_as_features(small), small.flatten(1))

def test_unbiased_on_average():
    "Over many draws of unrelated features, debiased CKA has the mean 0"
    rng = np.random.default_rng(0)
    values = [cka(*rng.normal(size=(2, 12, 30))) for _ in range(400)]
    assert abs(np.mean(values)) < 4*np.std(values)/20

def test_few_samples(learn):
    few = ForgetSplit(learn.dls, [1, 2, 3])
    columns = probe_columns()(learn, few)
    assert np.isnan(columns['probe_cv']) and 0 <= columns['probe'] <= 1
    new = unlearn(learn, few, FineTune(n_epoch=1), quiet=True)
    one = ForgetSplit(learn.dls, [1])
    assert np.isnan(loss_barrier(learn.model, new.model, one).se)

def test_refusals(learn, split):
    with pytest.raises(InputError, match='One oracle has no floor'): cka_by_layer({'one': learn}, [learn], split)
    with pytest.raises(InputError, match='no retrained model'): barrier_columns([learn])(learn, split)
    with pytest.raises(InputError, match='steps=0'): loss_barrier(learn.model, learn.model, split, steps=0)
    with pytest.raises(InputError, match="'all'"): layer_features(learn.model, split, 'all')

def test_the_statistics_at_both_ends_are_those_of_retain(learn, split):
    "A model compared with itself has no barrier, whatever its running statistics"
    assert loss_barrier(learn.model, learn.model, split, steps=3).each.abs().max() < 1e-5

def test_learners_and_networks_are_accepted(learn, split):
    alone, named = cka_by_layer(learn, [learn, learn], split), cka_by_layer(dict(model=learn), [learn, learn], split)
    assert alone.equals(named)
    assert loss_barrier(learn, learn, split).value == loss_barrier(learn.model, learn.model, split).value
