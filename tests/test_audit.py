"The measures that every attack of `exposure` reports, with few references and few validation samples."
import numpy as np, pytest, torch
from rsu.algorithms.base import FineTune
from rsu.algorithms.unlearn import unlearn
from rsu.core.data import Samples, loaders
from rsu.core.outputs import margin, predict
from rsu.core.recipe import Recipe, mlp
from rsu.core.split import ForgetSplit
from rsu.evaluation.audit import attack_measures, bank_columns, exposure
from rsu.ranking.bank import ReferenceBank

attacks = ['loss', 'qmia', 'rmia', 'informia', 'lira', 'bavaria']

def part(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g)
    return Samples(x, (x[:,0] > 0).long(), range(2))

def trained(n_valid):
    dls = loaders(part(80, 0), part(n_valid, 1), part(30, 2), bs=16, device='cpu')
    return Recipe(mlp, n_epoch=2, args=dict(c_out=2)).fit(dls, quiet=True)

@pytest.fixture(scope='module')
def learn(): return trained(60)

@pytest.fixture(scope='module')
def bank(learn, tmp_path_factory):
    return ReferenceBank.fit(learn, 4, path=tmp_path_factory.mktemp('bank'), quiet=True)

def test_every_attack_reports_every_measure(learn, bank):
    table = exposure(learn, ForgetSplit(learn.dls, np.arange(10)), bank, fpr=.1)
    assert table.attack.tolist() == [o for o in attacks for _ in range(2)]
    measures = set(attack_measures([1., 0.], [0., 1.]))
    assert set(table) == {'model', 'attack', 'set', *measures, 'stability', 'members', 'others'}
    assert table[[*measures - {'prior_1', 'prior_10', 'prior_1_refs', 'prior_10_refs'}]].notna().all(axis=None)
    assert table.others.tolist() == [60, 60, 30, 30, *[60]*8]
    assert table.fpr.between(0, .1).all() and table.stability.between(0, 1).all()

def test_thresholds_from_references_do_not_depend_on_the_attacked_model(learn, bank):
    split = ForgetSplit(learn.dls, np.arange(10))
    other = unlearn(learn, split, FineTune(n_epoch=3, lr=.1), quiet=True)
    table = exposure({'a': learn, 'b': other}, split, bank, fpr=.1).set_index(['model', 'attack', 'set']).sort_index()
    never = np.sort(bank.phi[::2][~bank.members[::2]].numpy())
    threshold = never[-int(.1*len(never))-1] # the loss attack's score is the margin
    for name, model in (('a', learn), ('b', other)):
        realised = (margin(*predict(model.model, split.valid)) > threshold).double().mean().item()
        assert table.fpr_refs[name, 'loss', 'retain'] == pytest.approx(realised)
    assert (table.stability['a'] == table.stability['b']).all()

def test_two_references_give_areas_without_thresholds(learn, tmp_path):
    two = ReferenceBank.fit(learn, 2, path=tmp_path, quiet=True)
    table = exposure(learn, ForgetSplit(learn.dls, np.arange(10)), two, fpr=.1).set_index('attack')
    assert table.auc.notna().all() and table.stability.isna().all()
    with_references = ['rmia', 'informia', 'lira', 'bavaria']
    assert table.fpr_refs[with_references].isna().all() and table.fpr_refs[['loss', 'qmia']].notna().all()

def test_qmia_needs_twenty_validation_samples(tmp_path):
    learn = trained(12)
    split, bank = ForgetSplit(learn.dls, np.arange(10)), ReferenceBank.fit(learn, 4, path=tmp_path, quiet=True)
    assert set(exposure(learn, split, bank, fpr=.1).attack) == {*attacks} - {'qmia'}
    columns = bank_columns(bank)(learn, split)
    assert {k for k, v in columns.items() if np.isnan(v)} == {f'qmia_{o}{end}' for o in ('forget', 'retain')
                                                              for end in ('', '_se')}
