"""What a step refuses: a model from the wrong step, a file that is not what its recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import (
    Artifact,
    ArtifactFormat,
    LayerReport,
    Method,
    Outcome,
    Quantization,
    Recipe,
    Scope,
    Status,
    StepResult,
    StepSpec,
)
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.data.splits import load_dataset
from tfmot_ops.errors import ExportError
from tfmot_ops.store import describe
from tfmot_ops.tasks.classification import compile_default

pytestmark = pytest.mark.slow

DATA: dict[str, Any] = {"dataset": "digits", "limit": 60, "batch_size": 32}
SPARSE = "sparse50_wi8_ai8"
L = keras.layers


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Artifact]:
    """Name of a state -> a saved model in it."""
    folder = tmp_path_factory.mktemp("models")
    set_seed(0)
    model = keras.Sequential([L.Input((8, 8, 1)), L.Conv2D(8, 3, activation="relu", name="conv")])
    for layer in (L.GlobalAveragePooling2D(), L.Dense(10, activation="softmax", name="scores")):
        model.add(layer)
    compile_default(model, 1e-3)
    recipe = core.recipes.decode(SPARSE)
    wrapped, _ = core.prune(model, recipe)
    quantized, _ = core.quantize(model, core.recipes.decode("wi8_ai8"), load_dataset("digits").x_calibration)
    found = {}
    states = {"float": model, "wrapped": wrapped, "stripped": core.strip(wrapped), "quantised": quantized}
    for name, each in states.items():
        core.save_model(each, folder / f"{name}.h5")
        found[name] = describe(folder / f"{name}.h5", f"{folder}/{name}.h5", ArtifactFormat.KERAS_H5)
    return found


def _step(
    kind: str, model: Artifact, folder: Path, recipe: Any = SPARSE, **options: Any
) -> tuple[StepResult, list[str]]:
    told: list[str] = []
    document = {
        "step_id": kind,
        "inputs": {"model": model},
        "output_uri": str(folder),
        "options": {"kind": kind, "recipe": recipe, **DATA, **options},
    }
    return execute(StepSpec.model_validate(document), told.append), told


OUT_OF_ORDER = {
    "fine_tune without prune": ("fine_tune", "float", SPARSE, "put a prune step before fine_tune"),
    "fine_tune after strip": ("fine_tune", "stripped", SPARSE, "put a prune step before fine_tune"),
    "fine_tune with another recipe": ("fine_tune", "wrapped", "sparse80_wi8_ai8", "before fine_tune"),
    "prune with another recipe": ("prune", "wrapped", "sparse80_wi8_ai8", "before prune"),
    "strip without prune": ("strip", "float", SPARSE, "prune, fine_tune and strip"),
    "quantize without prune": ("quantize", "float", SPARSE, "prune, fine_tune and strip"),
    "ptq without prune": ("quantize", "float", "sparse50_wi8_ai8_ptq", "prune, fine_tune and strip"),
    "quantize without strip": ("quantize", "wrapped", SPARSE, "put a strip step between fine_tune and quantize"),
    "ptq without strip": ("quantize", "wrapped", "wi8_ai8_ptq", "put a strip step between fine_tune and quantize"),
    "prune of a quantised model": ("prune", "quantised", SPARSE, "the input of the quantize step"),
    "fine_tune of a quantised model": ("fine_tune", "quantised", "wi8_ai8", "the input of the quantize step"),
    "strip of a quantised model": ("strip", "quantised", "wi8_ai8", "the input of the quantize step"),
    "ptq of a quantised model": ("quantize", "quantised", "wi8_ai8_ptq", "the input of the quantize step"),
    "qat of a quantised model": ("quantize", "quantised", "wi8_ai8", "the input of the quantize step"),
}


@pytest.mark.parametrize("case", OUT_OF_ORDER.values(), ids=OUT_OF_ORDER.keys())
def test_a_step_out_of_order_is_refused_and_names_the_step_that_is_missing(models, case, tmp_path):
    kind, state, recipe, remedy = case
    result, told = _step(kind, models[state], tmp_path / "out", recipe)
    assert result.error is not None, "the step took the model"
    assert result.error.exit_code == 2, result.error.message
    assert remedy in result.error.message
    assert not any(" epoch " in line for line in told)
    assert not any((tmp_path / "out").rglob("*")), "something was written"


def test_a_quantised_model_is_refused_by_train(models, tmp_path):
    options = {"kind": "train", "model": models["quantised"].uri, **DATA, "epochs": 1}
    document = {"step_id": "train", "output_uri": str(tmp_path), "options": options}
    result = execute(StepSpec.model_validate(document), lambda _: None)
    assert result.error is not None
    assert result.error.exit_code == 2
    assert "quantised already" in result.error.message


@pytest.mark.parametrize("kind", ["train", "prune", "fine_tune", "strip", "quantize", "evaluate"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_every_step_with_the_layer(kind, value, models, tmp_path):
    model = core.load_model(Path(models["stripped"].uri))
    kernel, bias = model.get_layer("conv").get_weights()
    bias[3] = value  # the network's outputs may be finite all the same: -inf before a relu is 0
    model.get_layer("conv").set_weights([kernel, -bias])
    core.save_model(model, tmp_path / "model.h5")
    saved = describe(tmp_path / "model.h5", str(tmp_path / "model.h5"), ArtifactFormat.KERAS_H5)
    inputs = {} if kind == "train" else {"model": saved, "tflite": saved}
    options = {"model": saved.uri} if kind == "train" else {"recipe": "wi8_ai8"}
    document = {"step_id": kind, "inputs": inputs, "output_uri": str(tmp_path / "out")}
    result = execute(StepSpec.model_validate({**document, "options": {"kind": kind, **options, **DATA}}), print)
    assert result.error is not None
    assert (result.error.type, result.error.exit_code) == ("NotFiniteError", 4)
    assert "layer 'conv': the weight 'conv/bias:0' is not finite" in result.error.message
    assert not any((tmp_path / "out").rglob("*")), "something was written"


IN_ORDER = {
    "prune": ("prune", "float"),
    "prune again": ("prune", "wrapped"),
    "fine_tune": ("fine_tune", "wrapped"),
    "strip": ("strip", "wrapped"),
    "strip again": ("strip", "stripped"),
}


@pytest.mark.parametrize(("kind", "state"), IN_ORDER.values(), ids=IN_ORDER.keys())
def test_a_step_in_order_takes_the_model(models, kind, state, tmp_path):
    options = {} if kind == "strip" else {"epochs": 0}
    result, _ = _step(kind, models[state], tmp_path, **options)
    assert result.status is Status.OK, result.error
    assert result.metrics["sparsity"] >= 0.49


def test_a_sparse_recipe_that_prunes_nothing_is_refused(models, tmp_path):
    # Of the kernels, one has one input channel and the other eight: no group of sixteen fits.
    sparsity = {"ratio": 0.5, "n_of_m": [8, 16]}
    result, _ = _step("prune", models["float"], tmp_path, {"name": "wide", "sparsity": sparsity})
    assert result.error is not None
    assert result.error.exit_code == 2
    assert "recipe wide prunes no layer" in result.error.message


def test_what_is_not_pruned_is_said_with_its_reason(models, tmp_path):
    sparsity = {"ratio": 0.5, "scope": {"exclude": ["scores"]}}
    result, _ = _step("prune", models["float"], tmp_path, {"name": "partly", "sparsity": sparsity}, epochs=0)
    outcomes = {layer.path: (layer.outcome, layer.reason) for layer in result.layers}
    assert outcomes.pop("conv") == (Outcome.PRUNED, "50% zeros by magnitude")
    assert outcomes.pop("scores") == (
        Outcome.NOT_PRUNED,
        "not in the recipe's scope, or its shape does not take the pattern",
    )
    assert set(outcomes.values()) == {(Outcome.NOT_PRUNED, "has no kernel")}


# --- the file is what its recipe says -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoilt(models, tmp_path_factory) -> Artifact:
    """A float model with one weight that is NaN, and outputs that are finite: its ReLU gives 0 for NaN."""
    path = tmp_path_factory.mktemp("spoilt") / "nan.h5"
    model = core.load_model(models["float"].uri)
    kernel, bias = model.get_layer("conv").get_weights()
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("conv").set_weights([kernel, bias])
    core.save_model(model, path)
    return describe(path, str(path), ArtifactFormat.KERAS_H5)


@pytest.mark.parametrize("recipe", ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai8"])
def test_weights_that_are_nan_make_no_file(spoilt, recipe, tmp_path):
    result, _ = _step("quantize", spoilt, tmp_path / "out", recipe, epochs=0)
    assert result.error is not None
    assert result.error.exit_code == 4, result.error.message
    assert not any((tmp_path / "out").rglob("*")), "something was written"


def _profile(macs: int, int8_mac_fraction: float, types: tuple[str, ...] = ("int8",)) -> core.TFLiteProfile:
    counts: dict[str, Any] = dict.fromkeys(("float_ops", "requantize_ops", "size_bytes", "gzip_bytes"), 0)
    tables: dict[str, Any] = {name: {} for name in ("sparsity", "weight_sizes", "op_counts")}
    ends: dict[str, Any] = {"input_dtypes": types, "output_dtypes": types}
    return core.TFLiteProfile(macs=macs, int8_mac_fraction=int8_mac_fraction, **counts, **tables, **ends)


def _reports(**outcomes: str) -> list[LayerReport]:
    return [
        LayerReport(path=name.lower(), class_name=name, outcome=Outcome(outcome), reason="so")
        for name, outcome in outcomes.items()
    ]


def _recipe(method: Method = Method.PTQ, exclude: tuple[str, ...] = ()) -> Recipe:
    return Recipe(name="r", quantization=Quantization(method=method, scope=Scope(exclude=exclude)))


WRONG = {
    "ptq in float": (_recipe(), _reports(Conv2D="kept_float", Flatten="quantized")),
    "qat that says otherwise": (_recipe(Method.QAT), _reports(Conv2D="quantized")),
    "one of two excluded": (_recipe(exclude=("dense",)), _reports(Conv2D="kept_float", Dense="kept_float")),
}
RIGHT = {
    "int8": (_recipe(), _reports(Conv2D="quantized"), _profile(100, 0.01)),
    "no multiplication": (_recipe(), _reports(Flatten="quantized"), _profile(0, 0.0)),
    "no int8 form": (
        _recipe(),
        _reports(LSTM="kept_float", Conv3D="kept_float", Flatten="quantized"),
        _profile(9, 0.0),
    ),
    "excluded": (_recipe(exclude=("conv2d",)), _reports(Conv2D="kept_float", LSTM="kept_float"), _profile(9, 0.0)),
    "kept by qat": (_recipe(Method.QAT), _reports(Conv2D="kept_float", Flatten="quantized"), _profile(9, 0.0)),
    "float16": (core.recipes.decode("wi16f"), _reports(Conv2D="quantized"), _profile(9, 0.0, ("float32",))),
    "int16": (core.recipes.decode("wi8_ai16"), _reports(Conv2D="quantized"), _profile(9, 0.0, ("int16",))),
    "dynamic range": (core.recipes.decode("wi8_afp32"), _reports(Conv2D="quantized"), _profile(9, 0.0, ("float32",))),
    "float": (Recipe(name="f"), _reports(Conv2D="kept_float"), _profile(9, 0.0)),
}


@pytest.mark.parametrize(("recipe", "layers"), WRONG.values(), ids=WRONG.keys())
def test_a_file_without_int8_is_refused(recipe, layers):
    with pytest.raises(ExportError, match="does not match recipe 'r'") as caught:
        core.require_recipe(_profile(100, 0.0), recipe, layers)
    assert caught.value.exit_code == 4
    assert "conv2d" in caught.value.required


@pytest.mark.parametrize(("recipe", "layers", "profile"), RIGHT.values(), ids=RIGHT.keys())
def test_a_file_that_is_as_its_recipe_says_passes(recipe, layers, profile):
    core.require_recipe(profile, recipe, layers)
