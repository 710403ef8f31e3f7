"What the jobs of the command line reject before any work."
import pytest
from rsu.app import pipeline
from rsu.app.pipeline import load_data
from rsu.app.settings import Settings
from rsu.core.config import InputError
from rsu.ranking.rankers import Record

@pytest.mark.parametrize('data, says', [
    ('digit', "did you mean 'digits'"), ('nowhere:f', "No module named 'nowhere'"),
    ('math:f', "'math' has no attribute 'f'"), ('math:pi', "'float' object is not callable"),
    ('os:getcwd', "What 'os:getcwd' returned has a str where a loader is wanted"), (':f', 'Empty module name')])
def test_data_that_cannot_be_loaded(data, says):
    with pytest.raises(InputError, match=says): load_data(Settings(data))

def test_a_stored_record_with_other_columns_is_not_read(tmp_path, monkeypatch, capsys):
    s = Settings('breast_cancer', ranker='perinstanceprivacy', train_epochs=1)
    dls = load_data(s)
    with monkeypatch.context() as m: # as a version wrote it that recorded less
        m.setattr(pipeline, '_record_columns', pipeline._record_columns[:-1])
        pipeline._model_of(s, dls, tmp_path, Record())
    capsys.readouterr()
    for again in (True, False): # the second time, the new record is read
        record = Record()
        pipeline._model_of(s, dls, tmp_path, record)
        assert ('the model is trained again' in capsys.readouterr().out) == again
        assert record.grad_norms.shape == record.phi.shape
