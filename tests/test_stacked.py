"Stacks of networks: what cannot be stacked, edge cases in stacks, and captured steps that are wrong"
import copy, threading, warnings
from functools import partial

import pytest, torch
from fastai.learner import Learner
from fastai.losses import LabelSmoothingCrossEntropyFlat
from torch import nn
from rsu.algorithms import many
from rsu.algorithms.ascent import NegGradPlus
from rsu.algorithms.exact import Retrain
from rsu.algorithms.many import Job, alone, unlearn_many
from rsu.algorithms.teacher import SCRUB
from rsu.algorithms.base import FineTune
from rsu.core.config import InputError, register
from rsu.core.datasets import digits
from rsu.core.parallel import one_thread, turn
from rsu.core.recipe import Recipe
from rsu.core.split import ForgetSplit
from rsu.core.stacked import CapturedStep, StackError, Trainer, _set_hypers, _train_alone
from rsu.ranking.rankers import Random
from rsu.sequence.sequence import SeqUnlearn

@register
def stacked_cnn(c_in=1, c_out=10):
    def layer(i, o):
        return nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    return nn.Sequential(*layer(c_in, 16), *layer(16, 32), nn.Flatten(), nn.Linear(128, c_out))

@register
def stacked_dropout(): return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))

@pytest.fixture(scope='module')
def learn(): return Recipe(stacked_cnn, n_epoch=10, lr=5e-3).fit(digits(n=400, device='cpu'), quiet=True)

@pytest.fixture(scope='module')
def split(learn): return ForgetSplit(learn.dls, 'random:40', seed=0)

def states(model): return model.state_dict().values()

def same(a, b): return all(torch.equal(p, q) for p, q in zip(states(a), states(b)))

def distance(a, b):
    "The largest difference of a weight, relative to the largest one of its tensor"
    return max(((p-q).abs().max()/q.abs().max()).item() for p, q in zip(states(a), states(b)) if p.is_floating_point())

def test_only_one_block_with_one_thread_runs():
    free = []
    def try_to_acquire(): free.append(turn.acquire(blocking=False))
    for device in ('cpu', 'cuda'):
        with one_thread(device):
            other = threading.Thread(target=try_to_acquire)
            other.start()
            other.join()
    assert free == [False, False]

class Clipped(FineTune):
    "Fine-tuning with clipped gradients"
    def before_step(self): nn.utils.clip_grad_norm_(self.model.parameters(), 1.)

def test_why_a_learner_is_not_stacked(learn, split):
    def with_loss(loss): return Learner(learn.dls, learn.model, loss)
    def with_model(model, **kwargs): return Learner(learn.dls, model, learn.loss_func, **kwargs)
    found = dict(smooth=with_loss(LabelSmoothingCrossEntropyFlat()), half=with_loss(learn.loss_func).to_bf16(),
                 dropout=with_model(stacked_dropout()),
                 part=with_model(learn.model, splitter=lambda m: [list(m[-1].parameters())]))
    batch_norm = nn.BatchNorm1d(64, track_running_stats=False)
    found['statistics'] = with_model(nn.Sequential(nn.Flatten(), batch_norm, nn.Linear(64, 10)))
    for kind in ('forward', 'forward_pre', 'full_backward', 'full_backward_pre'):
        found[kind] = with_model(copy.deepcopy(learn.model))
        getattr(found[kind].model[-1], f'register_{kind}_hook')(lambda *_: None)
    words = dict(smooth='not plain cross-entropy', half='precision', dropout='side by side', part='part',
                 statistics='statistics')
    for name, o in found.items(): assert words.get(name, 'hooks') in alone(o, split, FineTune()), name
    assert 'of its own' in alone(learn, ForgetSplit(digits(), 'random:60'), FineTune())

def test_why_an_algorithm_is_not_stacked(learn, split):
    ranked, groups = Random().rank(learn, split), SeqUnlearn(SCRUB(bs=64), 2)
    for how, words in [(Clipped(), 'before_step'), (Retrain(), 'Retrain acts by itself'),
                       (groups.replace(rerank=Random), 'ranked again'), (groups.replace(until=.5), 'target'),
                       (groups.replace(optimiser='kept'), 'handed on')]:
        assert words in alone(learn, ranked, how), how
    assert alone(learn, ranked, groups.replace(algorithm=(groups.algorithm, None))) == ''

class Fading(FineTune):
    "A learning rate that falls within an epoch"
    def rate(self, epoch): return 1/(1+3*epoch)

def run_both(learn, jobs):
    "Learners of runs in a stack and of single runs"
    with one_thread('cpu'):
        together = dict(many._run_together(learn, jobs, [o.how for o in jobs], len(jobs)))
        return [together[i] for i in range(len(jobs))], [learn.unlearn(*o[:2], seed=o.seed, quiet=True) for o in jobs]

def assert_equal_runs(learn, jobs):
    for a, b in zip(*run_both(learn, jobs)):
        assert distance(a.model, b.model) < 1e-3 < distance(b.model, learn.model)
        tables = [o.unlearning.stages.drop(columns=['seconds', 'memory']) for o in (a, b)]
        assert tables[0].equals(tables[1])

def test_a_rate_that_changes_within_an_epoch(learn, split):
    assert_equal_runs(learn, [Job(split, Fading(n_epoch=2, lr=lr, bs=64), s) for s, lr in enumerate([.05, .02])])

def test_a_single_sample_to_forget(learn):
    how = NegGradPlus(n_epoch=1, bs=64, bs_forget=8)
    assert_equal_runs(learn, [Job(ForgetSplit(learn.dls, [k]), how.replace(lr=lr)) for k, lr in [(7, .01), (9, .02)]])

def test_more_logits_than_classes(learn, split):
    torch.manual_seed(0)
    wider = copy.deepcopy(learn.model)
    wider[-1] = nn.Linear(wider[-1].in_features, 16)
    scrub = [SCRUB(lr=5e-4, alpha=.001, T=4., bs=64), SCRUB(lr=1e-3, alpha=.5, T=2., bs=64)]
    assert_equal_runs(Learner(learn.dls, wider, learn.loss_func), [Job(split, o, s) for s, o in enumerate(scrub)])

def test_jobs_are_checked_before_the_first_one_runs(learn, split):
    ranked = Random().rank(learn, split)
    for bad, words in [((ranked, 'scrub'), "how='scrub' is not an algorithm"),
                       ((ranked, SeqUnlearn(SCRUB(), 20)), 'too few for SCRUB to forget the 2 samples of group 1'),
                       ((ranked, FineTune(), -1), r'seed=-1 must be a whole number in \[0, 4294967295\]'),
                       (ranked, r'give Job\(split, how, seed\)'), ((ranked,), r'give Job\(split, how, seed\)')]:
        with pytest.raises(InputError, match=words): unlearn_many(learn, [(ranked, FineTune()), bad])
    assert list(unlearn_many(learn, [])) == []

def test_jobs_may_come_from_a_generator(learn, split):
    jobs = (Job(split, FineTune(n_epoch=1), s) for s in range(2))
    assert sorted(i for i, _ in unlearn_many(learn, jobs, quiet=True)) == [0, 1]

def stacked_trainer(recipe, dls, k=2):
    "A trainer that stacks models on a CPU, too"
    res = Trainer(recipe, dls)
    res.k, res.stacked = k, True
    res.precision = torch.float32
    return res

brief = Recipe(stacked_cnn, n_epoch=2, schedule='cosine', opt='sgd', lr=.01, bs=32)
halves = [range(0, 100), range(100, 200)]

def test_random_numbers_in_a_stack_are_those_of_the_plain_loop(learn):
    recipe = brief.replace(network=stacked_dropout)
    with one_thread('cpu'):
        trainer = stacked_trainer(recipe, learn.dls, k=1)
        nets = dict(trainer(halves, [0, 1]))
        assert trainer.stacked and all(same(nets[i], _train_alone(recipe, learn.dls, halves[i], i)) for i in range(2))

def wrong_at(n, step):
    "A captured step whose `n`th replay changes one weight too much"
    calls = []
    def replay():
        step.run()
        calls.append(None)
        if len(calls) == n: step.stack.params[-1].data[0] += 1
    return replay

def fails(step): raise RuntimeError('operation not permitted\nwhen capturing')

@pytest.mark.parametrize('capture, words', [(partial(wrong_at, 1), 'differs from a plain one'),
                                            (partial(wrong_at, 2), 'differs from a plain one'),
                                            (fails, r'cannot be captured \(operation not permitted\)')])
def test_a_wrong_captured_step_gives_a_warning_and_the_plain_models(learn, split, capture, words, monkeypatch):
    monkeypatch.setattr(CapturedStep, 'capture', lambda step: capture(step))
    monkeypatch.setattr(many, '_places', 2)
    trainer = stacked_trainer(brief, learn.dls)
    with one_thread('cpu'), pytest.warns(UserWarning, match=words) as caught:
        nets = [dict(trainer(halves, [0, 1])) for _ in range(2)]
    assert len(caught) == 1 and not trainer.stacked
    with one_thread('cpu'): plain = [_train_alone(brief, learn.dls, halves[i], i) for i in range(2)]
    assert all(same(o[i], plain[i]) for o in nets for i in range(2))
    jobs = [Job(split, how, s) for how in (FineTune(n_epoch=1), NegGradPlus(n_epoch=1)) for s in range(2)]
    with one_thread('cpu'), pytest.warns(UserWarning, match=words) as caught:
        assert list(many._run_stacked(learn, jobs, [o.how for o in jobs])) == [] and len(caught) == 1

def test_runs_are_single_after_a_wrong_captured_step(learn, split, monkeypatch):
    jobs = [Job(split, FineTune(n_epoch=1), s) for s in range(2)]
    with one_thread('cpu'): single = [learn.unlearn(*o[:2], seed=o.seed, quiet=True) for o in jobs]
    monkeypatch.setattr(many, 'stacks_runs', lambda learn: True)
    monkeypatch.setattr(many, '_places', 2)
    for capture, exact in [(CapturedStep.capture, False), (lambda step: wrong_at(1, step), True)]:
        monkeypatch.setattr(CapturedStep, 'capture', capture)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            runs = dict(unlearn_many(learn, jobs, quiet=True))
        messages = [str(o.message).partition(', by')[0] for o in caught]
        assert messages == ['A captured step differs from a plain one']*exact
        assert [same(runs[i].model, o.model) for i, o in enumerate(single)] == [exact]*2
        assert all(distance(runs[i].model, o.model) < 1e-3 for i, o in enumerate(single))

def captured(stack, inputs, lr):
    "A step of a stack, captured and checked"
    _set_hypers(stack, [dict(lr=lr)])
    return CapturedStep(stack, None, inputs, [dict(lr=lr)])

def test_the_check_leaves_weights_and_optimisers_as_they_were(learn):
    trainer = stacked_trainer(brief.replace(opt='adamw'), learn.dls)
    dict(trainer(halves, [0, 1]))
    stack = trainer.stack
    key, step = next(iter(stack.captured.items()))
    def tensors():
        moments = [t for o in stack.opts for state in o.opt.state.values() for t in state.values()]
        return [t.clone() for o in stack.roots for t in (*o.parameters(), *o.buffers())] + [t.clone() for t in moments]
    before = tensors()
    again = captured(stack, step.inputs, .01)
    assert again.error < 1e-2 and all(map(torch.equal, before, tensors()))

def test_a_step_with_weights_that_are_not_finite_is_wrong_only_where_the_plain_one_is_finite(learn):
    trainer = stacked_trainer(brief, learn.dls)
    dict(trainer(halves, [0, 1]))
    step = next(iter(trainer.stack.captured.values()))
    captured(trainer.stack, step.inputs, 1e38) # diverges in both
    def spoil(step):
        def replay():
            step.run()
            step.stack.params[-1].data[0] = torch.nan
        return replay
    with pytest.MonkeyPatch.context() as patched, pytest.raises(StackError, match='by nan'):
        patched.setattr(CapturedStep, 'capture', spoil)
        captured(trainer.stack, step.inputs, .01)
