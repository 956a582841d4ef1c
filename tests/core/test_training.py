"""Training repeats, reports its progress, and a rewritten model is compiled as the original was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops.core.keras.compiling import compile_like, compile_parameters, is_compiled
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.training.loop import fit
from tfmot_ops.errors import SpecError, StepFailedError, UnsupportedModelError
from tfmot_ops.tasks.classification import compile_default

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X = RNG.random((40, 6), dtype=np.float32)
Y = np.arange(40) % 3
layers = keras.layers


def one_output(name: str = "out") -> Any:
    inputs = layers.Input((6,))
    hidden = layers.Dropout(0.3)(layers.Dense(8, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name=name)(hidden))


def two_outputs(prefix: str = "") -> Any:
    inputs = layers.Input((6,))
    outputs = [layers.Dense(1, name=f"{prefix}{name}")(inputs) for name in ("b", "a")]
    return keras.Model(inputs, outputs)


def dict_outputs(prefix: str = "") -> Any:
    inputs = layers.Input((6,))
    outputs = {name: layers.Dense(1, name=f"{prefix}{name}")(inputs) for name in ("b", "a")}
    return keras.Model(inputs, outputs)


def my_loss(y_true: Any, y_pred: Any) -> Any:
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred) * 2.0


def my_metric(_: Any, y_pred: Any) -> Any:
    return keras.backend.max(y_pred, axis=-1)


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of a user, registered nowhere."""

    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, step: Any) -> Any:
        return self.start * 0.5 ** keras.backend.cast(step, "float32")

    def get_config(self) -> dict[str, float]:
        return {"start": self.start}


class NoConfig(keras.metrics.Metric):
    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def update_state(self, *_: Any, **__: Any) -> None: ...

    def result(self) -> float:
        return self.factor


def losses_of(model: Any, **kwargs: Any) -> list[float]:
    y = [X[:, :1], X[:, 1:2]] if len(model.outputs) > 1 else Y
    return [float(value) for value in np.ravel(model.evaluate(X, y, verbose=0, **kwargs))]


# --- fit ---------------------------------------------------------------------------------------------------------


def trained(seed: int) -> list[np.ndarray]:
    set_seed(0)
    model = one_output()
    compile_default(model, 0.01)
    fit(model, X, Y, validation=None, epochs=2, batch_size=16, seed=seed)
    return model.get_weights()


def test_the_same_seed_gives_the_same_weights():
    first, second, other = trained(1), trained(1), trained(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_progress_and_history_hold_every_epoch(capsys: pytest.CaptureFixture[str]):
    model = one_output()
    compile_default(model, 0.01)
    seen: list[tuple[int, int, dict[str, float]]] = []
    history = fit(
        model,
        X,
        Y,
        validation=(X, Y),
        epochs=3,
        batch_size=16,
        seed=0,
        on_epoch=lambda epoch, epochs, logs: seen.append((epoch, epochs, logs)),
    )
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [(epoch, epochs) for epoch, epochs, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [logs["val_loss"] for *_, logs in seen] == history["val_loss"]
    assert capsys.readouterr().out == ""


def test_every_sample_is_used_once_an_epoch():
    model = one_output()
    compile_default(model, 0.01)
    fit(model, X, Y, validation=None, epochs=2, batch_size=16, seed=0)
    assert int(model.optimizer.iterations.numpy()) == 2 * 3


def test_callbacks_are_called():
    model = one_output()
    compile_default(model, 0.01)
    batches: list[int] = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, _: batches.append(batch))
    fit(model, X, Y, validation=None, epochs=1, batch_size=20, seed=0, callbacks=[callback])
    assert batches == [0, 1]


def test_no_epochs_train_nothing():
    model = one_output()
    compile_default(model, 0.01)
    before = model.get_weights()
    assert fit(model, X, Y, validation=None, epochs=0, batch_size=16, seed=0) == {}
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_an_uncompiled_model_is_refused():
    with pytest.raises(SpecError, match="compiled model"):
        fit(one_output(), X, Y, validation=None, epochs=1, batch_size=16, seed=0)


def test_a_diverged_training_fails():
    model = keras.Sequential([layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(StepFailedError, match="diverged in epoch 1"):
        fit(model, X * np.float32(np.nan), X[:, :1], validation=None, epochs=1, batch_size=16, seed=0)


# --- compile_like: optimizers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and the settings of it that must survive."""

    id: str
    make: Callable[[], Any]


OPTIMIZERS = [
    Optimizer("adam", lambda: keras.optimizers.Adam(0.003, beta_1=0.8, amsgrad=True)),
    Optimizer("momentum", lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, clipnorm=1.5)),
    Optimizer("weight_decay", lambda: keras.optimizers.AdamW(0.01, weight_decay=0.02, use_ema=True)),
    Optimizer("schedule", lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9))),
    Optimizer("own_schedule", lambda: keras.optimizers.Adam(Halving(0.1))),
    Optimizer("legacy_adam", lambda: keras.optimizers.legacy.Adam(0.003, epsilon=1e-5, clipvalue=0.5)),
    Optimizer("legacy_sgd", lambda: keras.optimizers.legacy.SGD(Halving(0.1), momentum=0.9)),
    Optimizer("legacy_decay", lambda: keras.optimizers.legacy.RMSprop(0.1, decay=0.01)),
    Optimizer("loss_scale", lambda: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(Halving(0.2)))),
]


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.id)
def test_the_optimizer_is_made_again_with_the_same_settings(case: Optimizer):
    source, model = one_output(), one_output("quant_out")
    source.compile(case.make(), "sparse_categorical_crossentropy")
    source.fit(X, Y, verbose=0)
    compile_like(model, source)
    assert type(model.optimizer) is type(source.optimizer)
    assert model.optimizer is not source.optimizer
    assert repr(model.optimizer.get_config()) == repr(source.optimizer.get_config())
    assert int(model.optimizer.iterations.numpy()) == 0
    assert int(source.optimizer.iterations.numpy()) == 2
    model.fit(X, Y, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == int(source.optimizer.iterations.numpy()) == 2


def test_two_models_compiled_alike_train_alike():
    source, model = one_output(), one_output("quant_out")
    model.set_weights(source.get_weights())
    source.compile(keras.optimizers.SGD(Halving(0.5), momentum=0.9), my_loss)
    compile_like(model, source)
    for each in (source, model):
        set_seed(3)
        each.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(source.get_weights(), model.get_weights(), strict=True))


def test_a_learning_rate_lowered_while_training_is_kept():
    source, model = one_output(), one_output()
    source.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
    source.optimizer.learning_rate.assign(0.025)
    compile_like(model, source)
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.025)


def test_exclusions_from_weight_decay_are_kept():
    source, model = one_output(), one_output()
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    source.compile(optimizer, "sparse_categorical_crossentropy")
    compile_like(model, source)
    model.fit(X, Y, verbose=0)
    assert not model.optimizer._use_weight_decay(model.layers[1].bias)
    assert model.optimizer._use_weight_decay(model.layers[1].kernel)


# --- compile_like: losses and metrics ----------------------------------------------------------------------------


def test_an_uncompiled_source_leaves_the_model_uncompiled():
    model = one_output()
    compile_like(model, one_output())
    assert not is_compiled(model)


@pytest.mark.parametrize(
    "loss",
    ["sparse_categorical_crossentropy", my_loss, keras.losses.SparseCategoricalCrossentropy(), {"out": my_loss}],
    ids=["name", "function", "object", "dict"],
)
def test_the_loss_is_kept(loss: Any):
    source, model = one_output(), one_output("quant_out")
    model.set_weights(source.get_weights())
    source.compile("sgd", loss, loss_weights=[0.5], metrics=["accuracy", my_metric])
    compile_like(model, source)
    assert losses_of(model) == losses_of(source)
    assert model.metrics_names == source.metrics_names


@dataclass(frozen=True)
class Compiled:
    """A compile configuration of a two-output model."""

    id: str
    arguments: Callable[[], dict[str, Any]]


COMPILED = [
    Compiled("broadcast", lambda: {"loss": "mse", "metrics": ["mae"]}),
    Compiled("broadcast_object", lambda: {"loss": "mse", "metrics": [keras.metrics.MeanAbsoluteError(name="m")]}),
    Compiled("list", lambda: {"loss": ["mse", "mae"], "loss_weights": [1.0, 3.0], "metrics": [["mae"], [my_metric]]}),
    Compiled("dict", lambda: {"loss": {"a": "mae", "b": "mse"}, "loss_weights": {"a": 3.0, "b": 1.0}}),
    Compiled("partial", lambda: {"loss": {"a": "mae"}, "metrics": {"b": "mae"}}),
    Compiled(
        "objects",
        lambda: {
            "loss": {"a": keras.losses.Huber(0.1), "b": "mse"},
            "metrics": {"a": [keras.metrics.MeanAbsoluteError(name="off"), "mse"], "b": my_metric},
            "weighted_metrics": {"b": keras.metrics.MeanSquaredError(name="wide")},
        },
    ),
]


@pytest.mark.parametrize("prefix", ["", "quant_"], ids=["same_names", "other_names"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.id)
def test_each_output_keeps_its_losses_and_metrics(case: Compiled, used: bool, prefix: str):
    source, model = two_outputs(), two_outputs(prefix)
    model.set_weights(source.get_weights())
    source.compile("sgd", **case.arguments())
    if used:
        losses_of(source)
    compile_like(model, source)
    assert losses_of(model) == losses_of(source)
    # The user's names stay, whatever the layers are called.
    assert model.metrics_names == source.metrics_names


def test_outputs_in_a_dict_keep_their_keys():
    source, model = dict_outputs(), dict_outputs("quant_")
    model.set_weights(source.get_weights())
    source.compile("sgd", {"a": "mae", "b": "mse"}, loss_weights={"a": 5.0, "b": 1.0})
    compile_like(model, source)
    y = {"a": X[:, :1], "b": X[:, 1:2]}
    assert model.evaluate(X, y, verbose=0) == source.evaluate(X, y, verbose=0)


def test_metrics_share_no_state():
    source, model = one_output(), one_output("quant_out")
    metric = keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top2")
    source.compile("sgd", "sparse_categorical_crossentropy", metrics=[metric])
    compile_like(model, source)
    losses_of(model)
    assert float(metric.count.numpy()) == 0.0
    assert model.compiled_metrics.metrics[0].get_config() == metric.get_config()


def test_a_model_from_a_file_can_be_the_source(tmp_path: Path):
    saved = two_outputs()
    saved.compile("adam", {"a": "mae", "b": "mse"}, metrics={"a": ["mae"], "b": ["mse"]}, loss_weights={"a": 2.0})
    saved.fit(X, [X[:, :1], X[:, 1:2]], verbose=0)
    with pytest.warns(UserWarning, match="HDF5"):
        saved.save(tmp_path / "model.h5")
    source, model = keras.models.load_model(tmp_path / "model.h5"), two_outputs("quant_")
    model.set_weights(source.get_weights())
    compile_like(model, source)
    assert losses_of(model) == losses_of(source) == losses_of(saved)


def test_execution_settings_are_kept():
    source, eager = one_output(), one_output()
    source.compile("sgd", my_loss, steps_per_execution=4, jit_compile=False)
    eager.compile("sgd", my_loss, run_eagerly=True)
    for each, settings in ((source, (4, False, None)), (eager, (1, None, True))):
        model = one_output("quant_out")
        compile_like(model, each)
        assert (int(model._steps_per_execution.numpy()), model._jit_compile, model._run_eagerly) == settings


def test_another_number_of_outputs_is_refused():
    source = two_outputs()
    source.compile("sgd", "mse")
    with pytest.raises(UnsupportedModelError, match="as many outputs: 2"):
        compile_like(one_output(), source)


def test_a_metric_without_a_config_is_named():
    source = one_output()
    source.compile("sgd", my_loss, metrics=[NoConfig(2.0)])
    with pytest.raises(UnsupportedModelError, match="NoConfig cannot be re-created from its config"):
        compile_like(one_output(), source)


# --- compile_parameters ------------------------------------------------------------------------------------------


def test_an_uncompiled_model_has_no_parameters():
    assert compile_parameters(one_output()) == {}


def test_parameters_are_flat_and_readable():
    model = two_outputs()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)
    loss = {"a": my_loss, "b": keras.losses.Huber(0.5)}
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), loss, {"a": ["mae", my_metric]}, {"a": 1.0, "b": 2.0})
    parameters = compile_parameters(model)
    assert parameters["optimizer"] == "SGD"
    assert parameters["optimizer.momentum"] == 0.9
    rate = "ExponentialDecay(initial_learning_rate=0.1, decay_steps=5, decay_rate=0.9, staircase=False, name=None)"
    assert parameters["optimizer.learning_rate"] == rate
    assert f"a={my_loss.__module__}.my_loss, b=Huber(" in str(parameters["loss"])
    assert "delta=0.5" in str(parameters["loss"])
    assert parameters["loss_weights"] == "a=1.0, b=2.0"
    assert parameters["metrics"] == f"a=[mae, {my_metric.__module__}.my_metric]"
    assert parameters["jit_compile"] is None
    assert parameters["steps_per_execution"] == 1


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.id)
def test_parameters_are_json_scalars(case: Optimizer):
    model = one_output()
    model.compile(case.make(), my_loss, metrics=[keras.metrics.SparseCategoricalAccuracy(), "accuracy"])
    parameters = compile_parameters(model)
    assert parameters["optimizer"] == type(model.optimizer).__name__
    assert {type(value) for value in parameters.values()} <= {str, int, float, bool, type(None)}


def test_the_default_parameters():
    model = one_output()
    compile_default(model, 0.25)
    parameters = compile_parameters(model)
    expected = {
        "optimizer": "Adam",
        "optimizer.learning_rate": 0.25,
        "loss": "sparse_categorical_crossentropy",
        "metrics": "accuracy",
        "loss_weights": None,
    }
    assert {key: parameters[key] for key in expected} == expected
