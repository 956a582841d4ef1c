"""A user layer's own arguments in a saved model, and calls that wait for themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.saving.safe_calls import check_calls
from tfmot_ops.errors import ArtifactError

L = keras.layers


@keras.saving.register_keras_serializable("saved_calls")
class Own(L.Layer):
    """Takes any argument."""

    def __init__(self, own: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.own = own

    def call(self, inputs: Any, how: Any = None) -> Any:
        return inputs * (2.0 if how is None else 3.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "own": self.own}


def _model(own: Any = None, **arguments: Any) -> Any:
    inputs = keras.Input((4,))
    return keras.Model(inputs, L.Dense(2)(Own(own, name="own")(inputs, **arguments)))


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize(
    "own",
    [["x", 1, 2], {"input_layers": 1, "layers": [{"name": "x", "inbound_nodes": [["x", 1, 2]]}]}],
    ids=["list", "layers"],
)
def test_own_arguments_are_no_references(tmp_path: Path, suffix: str, own: Any) -> None:
    model = _model(own)
    core.save_model(model, tmp_path / f"model{suffix}")
    loaded = core.load_model(tmp_path / f"model{suffix}")
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(model.predict(x, verbose=0), loaded.predict(x, verbose=0))


def test_a_list_that_keras_reads_as_a_reference_is_explained(tmp_path: Path) -> None:
    core.save_model(_model(how=["x", 1, 2]), tmp_path / "model.h5")
    with pytest.raises(ArtifactError, match=r"called with a list of a text.*'x'"):
        core.load_model(tmp_path / "model.h5")


@pytest.mark.parametrize("number", [-1, 0.5, None, "0", 9])
@pytest.mark.parametrize("has_inputs", [True, False])
def test_a_call_that_never_comes_is_refused(number: Any, has_inputs: bool) -> None:
    config = json.loads(_model().to_json())["config"]
    config["layers"][-1]["inbound_nodes"] = [[["own", number, 0, {}]]]
    if not has_inputs:
        del config["input_layers"]
    with pytest.raises(ValueError, match="waits for a result"):
        check_calls({"class_name": "Functional", "config": config})
