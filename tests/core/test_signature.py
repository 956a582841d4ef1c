"""The signature of exported files: a program asks for inputs and outputs by the model's own names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.tflite.interpreter import make_interpreter
from tfmot_ops.core.tflite.signature import with_signature

L = keras.layers
RNG = np.random.default_rng(0)
X = {"picture": RNG.random((16, 8, 8, 3), dtype=np.float32), "speed": RNG.random((16, 4), dtype=np.float32)}


def two_and_two(*, named_outputs: bool) -> Any:
    keras.utils.set_random_seed(0)
    inputs = [L.Input((8, 8, 3), name="picture"), L.Input((4,), name="speed")]
    features = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu")(inputs[0]))
    joined = L.Concatenate()([features, inputs[1]])
    kind, place = L.Dense(3, activation="softmax", name="kind")(joined), L.Dense(2, name="box")(joined)
    return keras.Model(inputs, {"what": kind, "there": place} if named_outputs else [kind, place])


def exported(model: Any, recipe: str, x: Any) -> bytes:
    decoded = core.recipes.decode(recipe)
    net = core.quantize(model, decoded, x)[0] if recipe == "wi8_ai8" else model
    return core.export_tflite(net, decoded, x)


@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq", "wi8_ai16_ptq", "wi8_ai8_aeq", "wi16f"])
def test_a_file_is_run_by_the_models_names(recipe: str) -> None:
    data = exported(two_and_two(named_outputs=False), recipe, list(X.values()))
    interpreter = make_interpreter(data)
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["picture", "speed"], "outputs": ["box", "kind"]}
    }
    run = interpreter.get_signature_runner()
    details, results = run.get_input_details(), run.get_output_details()
    assert {name: list(detail["shape"]) for name, detail in details.items()} == {
        "picture": [1, 8, 8, 3],
        "speed": [1, 4],
    }

    def integers(name: str) -> Any:
        scale, zero = details[name]["quantization"]
        values = X[name][:1] / scale + zero if scale else X[name][:1]
        return (np.round(values) if scale else values).astype(details[name]["dtype"])

    answers = run(**{name: integers(name) for name in X})
    expected = core.predict(data, [values[:1] for values in X.values()])
    for name, values in zip(("kind", "box"), expected, strict=True):
        scale, zero = results[name]["quantization"]
        found = (answers[name].astype(np.float32) - zero) * scale if scale else answers[name]
        np.testing.assert_allclose(found, values, atol=2 * scale or 1e-5)


def test_outputs_of_a_dict_have_its_keys() -> None:
    data = exported(two_and_two(named_outputs=True), "wi8_ai8", list(X.values()))
    signature = make_interpreter(data).get_signature_runner()
    assert {name: detail["shape"][-1] for name, detail in signature.get_output_details().items()} == {
        "what": 3,
        "there": 2,
    }


def test_a_qat_model_that_was_saved_has_the_names_of_its_layers_without_the_wrappers(tmp_path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([L.Input((4,), name="speed"), L.Dense(3, name="kind")])
    recipe = core.recipes.decode("wi8_ai8")
    core.save_model(core.quantize(model, recipe, X["speed"])[0], tmp_path / "m.h5")
    data = core.export_tflite(core.load_model(tmp_path / "m.h5"), recipe)
    assert make_interpreter(data).get_signature_list()["serving_default"] == {"inputs": ["speed"], "outputs": ["kind"]}


def test_the_file_is_otherwise_as_it_was() -> None:
    """Every part of the file, read through the new head, is the part that was there, at the same alignment."""
    data = exported(two_and_two(named_outputs=False), "wi8_ai8", list(X.values()))
    whole = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    head = data.index(b"TFL3", 8) - 4
    before = data[head:]
    assert head % 64 == 0
    assert with_signature(before, ["picture", "speed"], ["kind", "box"]) == data
    old = schema.ModelT.InitFromObj(schema.Model.GetRootAs(before, 0))
    assert not old.signatureDefs
    assert [whole.version, whole.description] == [old.version, old.description]
    for name in ("operatorCodes", "buffers", "metadata", "subgraphs"):
        assert len(getattr(whole, name) or []) == len(getattr(old, name) or [])
    for one, other in zip(whole.buffers, old.buffers, strict=True):
        assert np.array_equal(one.data if one.data is not None else [], other.data if other.data is not None else [])
    x = [values[:3] for values in X.values()]
    for one, other in zip(core.predict(data, x), core.predict(before, x), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("outputs", [["kind"], ["kind", "kind"]], ids=["too few", "twice"])
def test_names_that_do_not_fit_leave_the_file_as_it_is(outputs: list[str]) -> None:
    data = exported(two_and_two(named_outputs=False), "wi8_ai8_ptq", list(X.values()))
    before = data[data.index(b"TFL3", 8) - 4 :]
    assert with_signature(before, ["picture", "speed"], outputs) == before


def test_a_signature_is_replaced() -> None:
    data = exported(two_and_two(named_outputs=False), "wi8_ai8_ptq", list(X.values()))
    signatures = make_interpreter(with_signature(data, ["a", "b"], ["c", "d"])).get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["a", "b"], "outputs": ["c", "d"]}}
