"The block `overriding` calls a callback only for the events at which it acts; nothing else about a fit changes."
from functools import partial

from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import no_random
from torch import nn

from rsu.core.datasets import breast_cancer
from rsu.core.indexing import subset
from rsu.core.recipe import mlp, overriding

class Named(Callback):
    "Logs its events; 'tired' switches itself off after a step"
    def __init__(self, own_name, log, order): self.own_name,self.log,self.order = own_name,log,order
    def before_fit(self): self.log.append((self.own_name,'before_fit'))
    def after_step(self):
        self.log.append((self.own_name,'after_step'))
        self.run = self.own_name != 'tired'

class Trace(Callback):
    "Logs every event"
    def __init__(self, log): self.log = log
    def __call__(self, event_name): self.log.append(event_name)

def events_of(table, every_event):
    "The logged calls in a fit of ten batches, with fastai's way of calling callbacks where `every_event`"
    with no_random(0): learn = Learner(table, mlp(), nn.CrossEntropyLoss())
    log = []
    def add_late(self): self.learn.add_cb(Named('late', log, 3))
    def log_batch(self): log.append('after_batch')
    of_functions,tired = Callback(before_fit=add_late, after_batch=log_batch), Named('tired', log, 7)
    with overriding(learn, subset(table.train, range(320), seed=0), quiet=True), learn.no_bar(), learn.no_logging():
        if every_event: learn._call_one = partial(Learner._call_one, learn)
        learn.fit(2, cbs=[of_functions, tired, Named('first', log, -70), Trace(log)])
    assert '_call_one' not in vars(learn) and tired.run
    return log

def test_the_calls_and_their_order_are_fastais():
    table = breast_cancer(device='cpu')
    log = events_of(table, every_event=False)
    assert log == events_of(table, every_event=True)
    counts = [log.count((name,'after_step')) for name in ('tired','first','late')]
    assert [*counts, log.count('after_batch')] == [1, 10, 10, 20]
