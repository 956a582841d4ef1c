"""A model that comes trained is measured, and trained only where that is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.cli import main
from tfmot_ops.cli.chain import Chain
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import Status, StepResult, StepSpec, Tracking, TrainOptions
from tfmot_ops.core import keras
from tfmot_ops.data.splits import load_dataset
from tfmot_ops.models.by_name import comes_trained
from tfmot_ops.tasks.classification import compile_default
from tfmot_ops.tracking.client import connect

pytestmark = pytest.mark.slow

DATA: dict[str, Any] = {"limit": 100, "batch_size": 32}
L = keras.layers


def _model() -> Any:
    keras.utils.set_random_seed(0)
    layers = [L.Input((8, 8, 1)), L.Conv2D(8, 3), L.BatchNormalization(momentum=0.9), L.ReLU(), L.Flatten()]
    return keras.Sequential([*layers, L.Dense(10, activation="softmax")])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Kind of file -> a model trained for two epochs, with an optimizer of its own."""
    folder = tmp_path_factory.mktemp("trained")
    data = load_dataset("digits", limit=100)
    model = _model()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.8), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(data.x_train, data.y_train, epochs=2, verbose=0)
    paths = {"h5": folder / "model.h5", "keras": folder / "model.keras", "folder": folder / "saved"}
    core.save_model(model, paths["h5"])
    model.save(paths["keras"])
    core.save_model(model, paths["folder"])
    return paths


def _weights(path: Any) -> list[np.ndarray]:
    return core.load_model(str(path).removeprefix("file://")).get_weights()


def _equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))


def _chain(model: Any, recipe: str, folder: Path, **epochs: int) -> tuple[dict[str, StepResult], list[str]]:
    told: list[str] = []
    chain = Chain(str(model), "digits", recipe, folder, None, epochs=epochs, data=DATA)
    result = chain.run(told.append)
    assert result.status is Status.OK, result.error
    return {result.step_id: result for result in chain.results}, told


def _trained_in(told: list[str]) -> set[str]:
    return {line.split()[0] for line in told if " epoch " in line}


@pytest.mark.parametrize("kind", ["h5", "keras", "folder"])
def test_a_saved_model_is_not_trained_and_its_weights_stay_bit_for_bit(trained, kind, tmp_path):
    told: list[str] = []
    options = {"kind": "train", "model": str(trained[kind]), "dataset": "digits", **DATA}
    spec = StepSpec.model_validate({"step_id": "train", "output_uri": str(tmp_path), "options": options})
    result = execute(spec, told.append)
    assert result.status is Status.OK, result.error
    assert _equal(_weights(result.outputs["model"].uri), _weights(trained[kind]))
    assert result.parameters["epochs"] == 0
    assert result.parameters["compile"]["optimizer"] == "SGD"
    assert any("a saved model is measured and not trained; --epochs N trains it" in line for line in told)
    assert 0.0 <= result.metrics["accuracy"] <= 1.0


def test_a_logged_model_is_not_trained(tmp_path):
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    options = TrainOptions(model="resnet8", dataset="digits", epochs=1, **DATA)
    first = execute(StepSpec(step_id="train", tracking=tracking, options=options), lambda _: None)
    assert first.status is Status.OK, first.error
    client, experiment = connect(tracking.uri, "tfmot_ops")
    (logged,) = client.search_logged_models([experiment])
    told: list[str] = []
    again = TrainOptions(model=logged.model_uri, dataset="digits", **DATA)
    result = execute(
        StepSpec(step_id="again", output_uri=str(tmp_path / "out"), tracking=tracking, options=again), told.append
    )
    assert result.status is Status.OK, result.error
    assert _trained_in(told) == set()
    assert result.metrics["accuracy"] == first.metrics["accuracy"]


@pytest.fixture(scope="module")
def ptq(trained, tmp_path_factory) -> tuple[dict[str, StepResult], list[str]]:
    return _chain(trained["h5"], "wi8_ai8_ptq", tmp_path_factory.mktemp("ptq"))


def test_ptq_of_a_trained_model_trains_nothing(trained, ptq):
    results, told = ptq
    assert _trained_in(told) == set()
    assert _equal(_weights(results["strip"].outputs["model"].uri), _weights(trained["h5"]))
    for step in ("prune", "fine_tune", "strip"):
        assert results[step].metrics["passed_through"] == 1
        assert not {"accuracy", "size_bytes"} & results[step].metrics.keys()  # the step before has measured the model
        assert any(line.startswith(f"{step}: ") and "the model stays unchanged" in line for line in told)
    assert results["evaluate"].metrics["float_accuracy"] == results["train"].metrics["accuracy"]


def test_a_sparse_qat_recipe_trains_what_its_budget_says_and_no_more(trained, tmp_path):
    results, told = _chain(trained["h5"], "sparse50_wi8_ai8", tmp_path)
    assert _trained_in(told) == {"fine_tune", "quantize"}
    assert [results[step].parameters["epochs"] for step in ("train", "fine_tune", "quantize")] == [0, 4, 2]


def test_no_fine_tune_epochs_are_obeyed(trained, tmp_path):
    _, told = _chain(trained["h5"], "sparse50_wi8_ai8_ptq", tmp_path, prune=0, fine_tune=0)
    assert _trained_in(told) == set()


def test_epochs_that_are_asked_for_are_trained(trained, tmp_path):
    results, told = _chain(trained["h5"], "wi8_ai8_ptq", tmp_path, train=1, fine_tune=1)
    assert _trained_in(told) == {"train", "fine_tune"}
    assert "passed_through" not in results["fine_tune"].metrics
    assert not any("comes trained" in line for line in told)


def test_a_model_with_random_weights_is_trained_for_ten_epochs(tmp_path):
    options = {"kind": "train", "model": "resnet8", "dataset": "digits", **DATA}
    told: list[str] = []
    result = execute(
        StepSpec.model_validate({"step_id": "train", "output_uri": str(tmp_path), "options": options}), told.append
    )
    assert result.parameters["epochs"] == 10
    assert sum(" epoch " in line for line in told) == 10
    assert "test_split" not in result.parameters


def test_only_saved_models_come_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("resnet8", "saved", "application:MobileNet"):
        Path(folder).mkdir()
    assert [name for name in ("a.h5", "a.keras", "saved") if not comes_trained(name)] == []
    others = ("resnet8", "mobilenet_like", "application:MobileNet", "registered")
    assert [name for name in others if comes_trained(name)] == []


def test_a_drawn_test_split_is_said_loudly(ptq):
    results, told = ptq
    (line,) = [line for line in told if "WARNING" in line]
    assert "the model may have seen it" in line
    assert "x_test" in line
    assert results["train"].parameters["test_split"] == "drawn from the data; the model may have seen it"


def test_the_printed_table_says_that_the_test_split_was_drawn(trained, tmp_path, monkeypatch, capsys):
    arguments = ["--model", str(trained["h5"]), "--dataset", "digits", "--recipe", "wi8_ai8_ptq", "--limit", "100"]
    monkeypatch.setattr(sys, "argv", ["tfmot-ops", "optimize", *arguments, "--no-tracking", "--output", str(tmp_path)])
    main_exit_code = _main()
    assert main_exit_code == 0
    shown = capsys.readouterr().out
    table = shown[shown.index("\nstep ") :]
    assert "test split: drawn from the data; the model may have seen it" in table
    assert "TFLite file against the trained float model: accuracy " in table


def _main() -> int:
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_test_set_of_its_own_needs_no_warning(trained, tmp_path):
    data = load_dataset("digits", limit=100)
    arrays = {"x_train": data.x_train, "y_train": data.y_train, "x_test": data.x_test, "y_test": data.y_test}
    np.savez(tmp_path / "own.npz", **arrays)
    told: list[str] = []
    options = {"kind": "train", "model": str(trained["h5"]), "dataset": f"npz:{tmp_path}/own.npz", "batch_size": 32}
    document = {"step_id": "train", "output_uri": str(tmp_path / "out"), "options": options}
    result = execute(StepSpec.model_validate(document), told.append)
    assert result.status is Status.OK, result.error
    assert "test_split" not in result.parameters
    assert not any("WARNING" in line for line in told)


def test_a_pruned_model_that_comes_with_its_wrappers_goes_through_the_chain(tmp_path):
    model = _model()
    compile_default(model, 1e-3)
    core.save_model(core.prune(model, core.recipes.decode("sparse50"))[0], tmp_path / "pruned.h5")
    results, told = _chain(tmp_path / "pruned.h5", "wi8_ai8_ptq", tmp_path / "out", train=1)
    assert _trained_in(told) == {"train"}
    zeros = core.layer_sparsity(core.load_model(results["strip"].outputs["model"].uri.removeprefix("file://")))
    assert zeros["conv2d"] >= 0.49
    assert "passed_through" not in results["strip"].metrics
