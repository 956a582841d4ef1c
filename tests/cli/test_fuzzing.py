"""Inputs that are changed at random, from a seed: each ends as a good one, or as an error with its exit code."""

from __future__ import annotations

import pytest
from bad_models import good_files
from fuzzing import KINDS, ends

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.*is a file of Keras 3"),
]
SEED = 1
COUNTS = {"model": 30, "tflite": 150}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the good files."""
    folder = tmp_path_factory.mktemp("fuzzing")
    good_files(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_end_is_foreseen(folder, kind):
    count = COUNTS.get(kind, 200)
    found = ends(kind, folder, count, SEED)
    assert sum(found.values()) == count
    assert [end for end in found if end.startswith("NOT FORESEEN")] == []
    assert sum(number for end, number in found.items() if end.startswith("exit code")) > count // 4
