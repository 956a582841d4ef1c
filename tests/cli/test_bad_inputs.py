"""Whatever is wrong with an input: an error of this package with its exit code, soon, and in little memory."""

from __future__ import annotations

import resource

import pytest
from bad_inputs import BAD_INPUTS, READERS
from bad_models import good_files

from tfmot_ops.errors import TfmotOpsError

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*is a file of Keras 3"),
]
#: Most memory that a refusal may take, in kB; the good files of these tests take less than 1 MB.
_MOST_MEMORY_KB = 700_000


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The folder above those of the bad inputs, with the good files that they are made of."""
    folder = tmp_path_factory.mktemp("bad")
    good_files(folder)
    return folder


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", BAD_INPUTS)
def test_a_bad_input_is_refused_with_its_exit_code(good, monkeypatch, name):
    bad = BAD_INPUTS[name]
    folder = good / str(list(BAD_INPUTS).index(name))
    folder.mkdir()
    monkeypatch.chdir(folder)
    given = bad.make(folder)
    before, memory = set(folder.rglob("*")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TfmotOpsError) as caught:
        READERS[bad.reader](given, folder)
    assert caught.value.exit_code == bad.code
    assert bad.words in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < _MOST_MEMORY_KB
    made = {path.name for path in set(folder.rglob("*")) - before}
    assert made <= {"source.h5", "fetched", "model.h5"}, "nothing half-written is left"


def test_there_are_as_many_as_promised():
    assert len(BAD_INPUTS) > 80
