"What the jobs of the command line reject before any work."
import pytest
from rsu.app.pipeline import load_data
from rsu.app.settings import Settings
from rsu.core.config import InputError

@pytest.mark.parametrize('data, says', [
    ('digit', "did you mean 'digits'"), ('nowhere:f', "No module named 'nowhere'"),
    ('math:f', "'math' has no attribute 'f'"), ('math:pi', "'float' object is not callable"),
    ('os:getcwd', "What 'os:getcwd' returned has a str where a loader is wanted"), (':f', 'Empty module name')])
def test_data_that_cannot_be_loaded(data, says):
    with pytest.raises(InputError, match=says): load_data(Settings(data))
