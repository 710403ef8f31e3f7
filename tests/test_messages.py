"Bad options of `rsu run`, on the command line and in a file: one sentence, exit code 2, and nothing is written."
import pytest
from common import call

def assert_rejected(capsys, here, words, *args):
    assert call('run', *args, '--out', 'x') == 2
    err = capsys.readouterr().err
    assert err.startswith('rsu: ') and words in err, err
    assert not (here/'x').exists()

@pytest.mark.parametrize('options, words', [
    ('--data digit', "did you mean 'digits'"),
    ('--network resnet', "did you mean 'cifar_resnet18'"),
    ('--network mlp', "'mlp' does not take samples of shape (1, 8, 8)"),
    ('--ranker lyra', "did you mean 'lira'"),
    ('--algorithm scrap', "did you mean 'scrub'"),
    ('--order descendin', "did you mean 'descending'"),
    ('--order 1,2', 'The order 1, 2 is not one of the groups 1, 2, 3'),
    ('--groups many', '--groups many is not understood'),
    ('--groups breaks:x', '--groups breaks:x is not understood'),
    ('--groups at:2,x', "'x' is not a number"),
    ('--groups nowhere.csv', "no file 'nowhere.csv'"),
    ('--algorithm scrub,none', 'for 2 groups and there are 3'),
    ('--repair scrub', '--repair SCRUB does not train on retained samples alone'),
    ('--until 2', '--until 2.0 must be a number in [0, 1]'),
    ('--rerank lira', 'give confidence, for example'),
    ('--schedule once', "--schedule once must be 'each stage' or 'whole'"),
    ('--config nowhere.toml', "'nowhere.toml' cannot be read"),
    ('--forget random:9999', '9999 of 1295'),
    ('--forget top:9999', 'selects 9999 of 1295 training samples'),
    ('--forget top:x', "'top:x' is not understood"),
    ('--groups 90', '90 groups cannot be made of 60 samples'),
    ('--references 3', 'give an even number, 2 or more'),
    ('--oracles 1', '--oracles 1 is too few'),
    ('--seeds 3', 'Unrecognized arguments: --seeds 3'),
    ('--lr -1', '--lr -1.0 must be a number in (0, inf)')])
def test_options(here, capsys, options, words): assert_rejected(capsys, here, words, *options.split(' '))

@pytest.mark.parametrize('line, words', [
    ('lr = true', '--lr True must be a number in (0, inf)'),
    ('bs = 32', "no setting called 'bs'"),
    ('n_epoch = 2.5', '--n-epoch 2.5 must be a whole number'),
    ('groups = true', '--groups True must be a whole number'),
    ('groups = [1]', '--groups (1,) must be a whole number, a string or an instance of Groups'),
    ('until = true', '--until True must be a finite number'),
    ('until = [[1]]', '--until ((1,),) must be a finite number'),
    ('until = {a = 1}', "--until {'a': 1} must be a finite number, a string, None or a tuple"),
    ('order = [1, 2, 3]', '--order (1, 2, 3) must be a string or a tuple of items, each a string'),
    ('algorithm = {lr = 0.1}', 'algorithm is given as settings without a name'),
    ('algorithm = {kind = "Algorithm"}', 'Algorithm is the base class of the algorithms'),
    ('algorithm = {kind = "NegGrad"}', "no kind of value called 'NegGrad'"),
    ('algorithm = {kind = "_Nothing"}', "no kind of value called '_Nothing'"),
    ('algorithm = {kind = "AMUN", retain = "no"}', "retain='no' must be True or False"),
    ('algorithm = {kind = "SCRUB", lr = true}', '--lr True must be a'),
    ('algorithm = "clinic:Drug"', "'clinic:Drug' could not be imported"),
    ('repair = {lr = 0.01}', 'repair is given as settings without a name'),
    ('rerank = {a = 1}', "--rerank {'a': 1} must be the name of a ranker"),
    ('data = 3', '--data 3 must be the name of a data set')])
def test_files(here, capsys, line, words):
    (here/'bad.toml').write_text(line, encoding='utf-8')
    assert_rejected(capsys, here, words, '--config', 'bad.toml')
