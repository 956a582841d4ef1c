"""What a file lost: against the float model that was trained, not against the pruned one."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tfmot_ops import core
from tfmot_ops.cli import chain_table as report
from tfmot_ops.cli.chain import Chain
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import Artifact, ArtifactFormat, Options, Status, StepResult, StepSpec
from tfmot_ops.core import keras
from tfmot_ops.data.splits import load_dataset
from tfmot_ops.store import describe
from tfmot_ops.tracking.summary import summary

pytestmark = pytest.mark.slow

DATA: dict[str, Any] = {"limit": 400, "batch_size": 32}
RECIPE = "sparse80_wi8_ai8"
L = keras.layers
CLASSES = {options.model_fields["kind"].default: options for options in get_args(get_args(Options)[0])}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    """A chain whose pruning costs accuracy: 80 % zeros, and one epoch to recover."""
    chain = Chain(
        model="resnet8",
        dataset="digits",
        recipe=RECIPE,
        output=tmp_path_factory.mktemp("chain"),
        tracking_uri=None,
        epochs={"train": 6, "prune": 1, "fine_tune": 1, "quantize": 1},
        data=DATA,
    )
    result = chain.run(lambda _: None)
    assert result.status is Status.OK, result.error
    return chain


def _of(chain: Chain, step: str) -> StepResult:
    (result,) = [result for result in chain.results if result.step_id == step]
    return result


def _accuracy(artifact: Artifact) -> float:
    data = load_dataset("digits", limit=DATA["limit"])
    path = artifact.uri.removeprefix("file://")
    return core.evaluate(core.load_model(path), data.x_test, data.y_test)["accuracy"]


def test_the_drop_of_a_chain_is_against_the_trained_model(chain):
    metrics = _of(chain, "evaluate").metrics
    trained, pruned = (_accuracy(_of(chain, step).outputs["model"]) for step in ("train", "strip"))
    assert trained > pruned + 0.05, "pruning has to cost accuracy, or the two references are one"
    assert metrics["float_accuracy"] == trained
    assert metrics["accuracy_drop"] == pytest.approx(trained - metrics["accuracy"])
    assert metrics["pruned_accuracy"] == pruned
    assert metrics["pruning_drop"] == pytest.approx(trained - pruned)
    assert metrics["quantization_drop"] == pytest.approx(pruned - metrics["accuracy"])
    assert _of(chain, "evaluate").parameters["float_reference"] == "trained"


def test_each_step_makes_the_outputs_that_its_options_name(chain):
    assert len(chain.results) == 6
    for result in chain.results:
        # The output `sensitivity` is for recipes with `quantization.keep`, which this one has not.
        assert set(result.outputs) == set(CLASSES[result.kind].makes) - {"sensitivity"}


def test_size_and_compression_are_against_the_trained_model(chain):
    metrics = _of(chain, "evaluate").metrics
    assert metrics["float_size_bytes"] == _of(chain, "train").metrics["size_bytes"]
    assert metrics["compression"] == metrics["float_size_bytes"] / metrics["size_bytes"]


def test_the_parents_summary_and_the_table_tell_the_drop(chain):
    metrics = _of(chain, "evaluate").metrics
    figures = summary({result.step_id: result.metrics for result in chain.results})
    for name in ("float_accuracy", "accuracy_drop", "pruned_accuracy", "pruning_drop", "quantization_drop"):
        assert figures[name] == metrics[name]
    assert figures["int8_accuracy"] == metrics["accuracy"]
    (note,) = report.summary_notes([_of(chain, "evaluate")])
    assert f"accuracy {metrics['accuracy']:.1%} instead of {metrics['float_accuracy']:.1%}" in note
    assert f"{100 * abs(metrics['accuracy_drop']):.1f} points lower" in note
    assert report.summary_lines(chain.results)[-1] == note
    assert note in str(report.summary_table(chain.results).caption)


def _save(model: Any, path: Any) -> Artifact:
    core.save_model(model, path)
    return describe(path, str(path), ArtifactFormat.KERAS_H5)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> dict[str, Artifact]:
    """A good float model, a bad one that the file was made of, and the file."""
    folder = tmp_path_factory.mktemp("artifacts")
    data = load_dataset("digits", limit=DATA["limit"])
    keras.utils.set_random_seed(0)
    trained = keras.Sequential([L.Input((8, 8, 1)), L.Flatten(), L.Dense(10, activation="softmax")])
    trained.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", ["accuracy"])
    trained.fit(data.x_train, data.y_train, epochs=6, verbose=0)
    bad = core.strip(core.prune(trained, core.recipes.decode("sparse95"))[0])
    path = folder / "tflite.tflite"
    path.write_bytes(core.export_tflite(bad, core.recipes.decode("wi8_ai8_ptq"), data.x_calibration))
    file = describe(path, str(path), ArtifactFormat.TFLITE)
    return {"trained": _save(trained, folder / "a.h5"), "model": _save(bad, folder / "b.h5"), "tflite": file}


@pytest.mark.parametrize(
    ("given", "recipe", "reference"),
    [
        (("trained", "model"), None, "trained"),
        (("trained",), None, "trained"),
        (("model",), None, "model"),
        (("model",), "sparse95_wi8_ai8_ptq", "model"),
        (("trained", "model"), "sparse95_wi8_ai8_ptq", "trained"),
        ((), None, None),
    ],
)
def test_an_evaluate_step_says_which_reference_it_used(artifacts, given, recipe, reference, tmp_path):
    document = {
        "step_id": "evaluate",
        "inputs": {name: artifacts[name] for name in ("tflite", *given)},
        "output_uri": str(tmp_path),
        "options": {"kind": "evaluate", "dataset": "digits", "recipe": recipe, **DATA},
    }
    told: list[str] = []
    result = execute(StepSpec.model_validate(document), told.append)
    assert result.status is Status.OK, result.error
    metrics = result.metrics
    assert result.parameters.get("float_reference") == reference
    assert any("there is no input `trained`" in line for line in told) == (reference == "model")
    assert ("pruned_accuracy" in metrics) == (recipe is not None and len(given) == 2)
    if reference is None:
        assert "accuracy_drop" not in metrics
        return
    assert metrics["float_accuracy"] == _accuracy(artifacts[reference])
    assert metrics["accuracy_drop"] == pytest.approx(metrics["float_accuracy"] - metrics["accuracy"])


def test_a_gain_reads_as_a_gain():
    metrics = {"accuracy": 0.95, "float_accuracy": 0.9, "accuracy_drop": -0.05, "compression": 3.0}
    result = StepResult(
        step_id="evaluate",
        kind="evaluate",
        spec_sha256="",
        status=Status.OK,
        metrics=metrics,
        parameters={"float_reference": "trained"},
    )
    (note,) = report.summary_notes([result])
    assert note == (
        "TFLite file against the trained float model: accuracy 95.0% instead of 90.0%, 5.0 points higher; "
        "3.0 times smaller"
    )
