"""The private names of tf_keras, tfmot and TensorFlow that the core counts on: each is still there, and as it was.

A test that fails here after an upgrade of a pin names what `tfmot_ops/core/keras/private.py` has to be adapted to.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import tfmot_ops
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras

L = keras.layers
PACKAGE = Path(tfmot_ops.__file__).parent
DOOR = PACKAGE / "core" / "keras" / "private.py"
#: Packages whose names are private, though their modules can be imported.
PRIVATE_PACKAGES = re.compile(
    r"tensorflow\.(python|lite\.python|compiler)\b|tf_keras\.(src|__internal__)\b|tensorflow_model_optimization\.python\b"
)
PRIVATE_NAME = re.compile(r"_[a-z]\w*")
#: Public methods, though their names begin like private ones.
_OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields"}


def _parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


# What is replaced or called with arguments: the signatures that the door counts on.
SIGNATURES = {
    "symbolic call": (L.Layer._keras_tensor_symbolic_call, ["inputs", "input_masks", "args", "kwargs"]),
    "save spec": (L.Layer._set_save_spec, ["inputs", "args", "kwargs"]),
    "build": (L.Layer._maybe_build, ["inputs"]),
    "name scope": (L.Layer._name_scope, []),
    "layers within": (L.Layer._flatten_layers, ["recursive", "include_self"]),
    "recurrent loop": (
        private.backend.rnn,
        [
            *("step_function", "inputs", "initial_states", "go_backwards", "mask", "constants", "unroll"),
            *("input_length", "time_major", "zero_output_for_mask", "return_all_outputs"),
        ],
    ),
    "reverse": (private.backend.reverse, ["x", "axes"]),
    "quantise": (
        private.TFLiteFrozenGraphConverterV2._quantize,
        [
            "result",
            "input_type",
            "output_type",
            "activations_type",
            "bias_type",
            "allow_float",
            "enable_variable_quantization",
            "debug_options",
        ],
    ),
    "freeze": (private.TFLiteFrozenGraphConverterV2._freeze_concrete_function, []),
    "optimise the graph": (
        private.TFLiteFrozenGraphConverterV2._optimize_tf_model,
        ["graph_def", "input_tensors", "output_tensors", "frozen_func"],
    ),
    "function to graph": (private.func_graph_from_py_func, ["name", "python_func", "args", "kwargs"]),
    "dismantle": (private.dismantle_func_graph, ["func_graph"]),
    "wrapper": (private.QuantizeWrapperV2.__init__, ["layer", "quantize_config"]),
    "attention mask": (
        L.MultiHeadAttention._compute_attention_mask,
        ["query", "value", "key", "attention_mask", "use_causal_mask"],
    ),
}


@pytest.mark.parametrize(("function", "expected"), SIGNATURES.values(), ids=SIGNATURES)
def test_signature(function: Any, expected: list[str]) -> None:
    assert _parameters(function)[: len(expected)] == expected


@pytest.fixture
def model() -> Any:
    inputs = keras.Input((4, 4, 3), name="image")
    x = L.Dropout(0.5, name="drop")(L.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model({"image": inputs}, {"scores": L.Dense(2, name="scores")(L.Flatten()(x))})
    model.compile(
        keras.optimizers.Adam(1e-3), {"scores": "mse"}, [{"scores": "mae"}][0], loss_weights={"scores": 0.5},
        weighted_metrics=[], steps_per_execution=2, jit_compile=False, run_eagerly=False,
    )  # fmt: skip
    return model


def test_call_signature(model: Any) -> None:
    drop, attention = (
        private.call_signature(model.get_layer("drop")),
        private.call_signature(L.MultiHeadAttention(1, 2)),
    )
    assert (drop.arg_names[0], drop.expects_training_arg, drop.expects_mask_arg) == ("inputs", True, False)
    assert drop.default_training_arg is None
    given = ((1, 2), {})
    assert attention.arg_was_passed("value", *given, inputs_in_args=True)
    assert attention.get_arg_value("value", *given, inputs_in_args=True) == 2
    args, kwargs = attention.set_arg_value("attention_mask", 3, *given, inputs_in_args=True)
    assert 3 in (*args, *kwargs.values())


def test_layers_and_calls(model: Any) -> None:
    conv = model.get_layer("conv")
    assert [layer.name for layer in private.layers_within(L.TimeDistributed(conv))][-1] == "conv"
    assert (private.package_of(conv), private.is_keras_layer_class(conv)) == ("convolutional", True)
    calls = private.calls_by_depth(model)
    (last,) = calls[0]
    assert (last.layer.name, private.history(model.outputs[0]).layer.name) == ("scores", "scores")
    assert private.index_of_call(last.layer, last) == 0
    assert {name for _, name, _ in private.recorded_call_lists(conv)} == {
        *("_inbound_nodes", "_outbound_nodes", "_losses", "_callable_losses", "_metrics")
    }
    private.rename(conv, "other")
    assert conv.name == "other"


def test_structure_of_a_model(model: Any) -> None:
    assert private.is_graph_network(model)
    assert list(private.nested_inputs(model)) == ["image"]
    assert list(private.nested_outputs(model)) == ["scores"]
    assert [layer.name for layer in private.output_layers(model)] == ["scores"]
    subclassed = type("Subclassed", (keras.Model,), {})()
    assert not private.is_graph_network(subclassed)
    assert (private.nested_outputs(subclassed), private.output_layers(subclassed)) == (None, [])


def test_masks() -> None:
    masked, plain = L.Masking(), L.Dense(2)
    assert (private.passes_mask_through(masked), private.passes_mask_through(plain)) == (False, True)
    query = tf.ones((1, 3, 2))
    private.set_mask(query, tf.constant([[True, True, False]]))
    mask = private.attention_mask(L.MultiHeadAttention(1, 2), query=query, value=query, key=query)
    assert mask.shape == (1, 3, 3)


def test_outputs_can_be_given(model: Any) -> None:
    conv, seen = model.get_layer("conv"), []

    def infer(inputs: Any, masks: Any, args: Any, kwargs: Any) -> Any:
        seen.append(inputs.shape)
        private.build_for_call(conv, inputs, args, kwargs)
        return private.trace_outputs(conv, inputs, masks, args, kwargs)

    with private.outputs_of_one_layer(conv, infer):
        conv(keras.Input((8, 8, 3)))
    with private.outputs_of_all_layers(lambda _layer, *rest: infer(*rest)):
        assert L.Dense(2)(keras.Input((8, 8, 3))).shape == (None, 6, 6, 4)
    assert [tuple(shape) for shape in seen] == [(None, 8, 8, 3)] * 2
    assert L.Dense(2)(keras.Input((3,))).shape == (None, 2)
    assert len(seen) == 2


def test_compile_arguments(model: Any) -> None:
    assert private.is_compiled(model)
    assert private.compile_arguments(model) == {
        "loss": {"scores": "mse"},
        "loss_weights": {"scores": 0.5},
        "metrics": {"scores": "mae"},
        "weighted_metrics": [],
        "run_eagerly": False,
        "steps_per_execution": 2,
        "jit_compile": False,
    }
    assert not private.tunes_steps_per_execution(model)


def test_trainable_state() -> None:
    model = keras.Sequential([keras.layers.Dense(1, input_shape=(2,))])
    model.compile("sgd", "mse")
    model.layers[0].trainable = False
    before = model.get_weights()
    private.refresh_trainable_state(model)
    model.fit(np.ones((4, 2)), np.ones(4), verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("adam", [keras.optimizers.Adam, keras.optimizers.legacy.Adam], ids=["new", "legacy"])
def test_optimizers(adam: Any) -> None:
    optimizer, variable = adam(0.25), tf.Variable([1.0])
    private.build_optimizer(optimizer, [variable])
    assert len(optimizer.variables()) >= 2
    assert float(np.asarray(private.given_learning_rate(optimizer))) == 0.25
    optimizer.learning_rate = 0.5
    assert [float(rate.numpy()) for rate in private.learning_rate_variables(optimizer)] in ([0.5], [])


def test_weight_decay_and_loss_scale() -> None:
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert private.names_without_decay(optimizer) == ["bias"]
    scaled = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD())
    assert private.loss_scale_variables(scaled)
    assert private.loss_scale_variables(optimizer) == []


def test_random_generators() -> None:
    keras.utils.set_random_seed(0)
    layer = L.Dropout(0.5, seed=7)
    (drawer,) = [value for value in vars(layer).values() if hasattr(value, "make_legacy_seed")]
    private.make_generator(drawer)
    assert private.own_seed(drawer) == 7
    private.set_own_seed(drawer, 3)
    assert private.own_seed(drawer) == 3
    stateless = L.Dropout(0.5, rng_type="stateful")
    (drawer,) = [value for value in vars(stateless).values() if hasattr(value, "make_legacy_seed")]
    private.make_generator(drawer)
    assert isinstance(private.generator_of(drawer), tf.random.Generator)
    function = tf.function(lambda: tf.constant(1))
    function()
    assert len(private.traces_of(function)) == 1


def test_wrappers_of_tfmot() -> None:
    model = keras.Sequential([L.Input((4,)), L.Dense(2, name="dense")])
    wrapper = tfmot.quantization.keras.quantize_model(model).layers[-1]
    assert isinstance(wrapper, private.QuantizeWrapperV2)
    ((variable, quantizer, extra),) = private.weight_variables(wrapper)
    assert variable.shape == (4, 2)
    assert quantizer.get_config()["num_bits"] == 8
    assert {"min_var", "max_var"} <= set(extra)
    ranges = private.output_range_variables(wrapper)
    assert ranges is None or {"min_var", "max_var"} <= set(ranges)
    assert private.weight_variables(L.Dense(2)) == []


def test_pruning_of_tfmot() -> None:
    layer = L.Dense(2)
    wrapper = tfmot.sparsity.keras.prune_low_magnitude(layer, tfmot.sparsity.keras.ConstantSparsity(0.5, 0))
    wrapper.build((None, 4))
    step, variables, schedule = private.pruning_arguments(wrapper.pruning_obj)
    assert callable(step)
    assert [len(each) for each in variables] == [3]
    assert schedule is wrapper.pruning_schedule


def test_activity_and_projection_regularizers() -> None:
    source, copy = L.Dense(2, activity_regularizer="l2"), L.Dense(2)
    private.copy_activity_regularizer(copy, source)
    assert copy.activity_regularizer is source.activity_regularizer
    attention = L.MultiHeadAttention(1, 2, kernel_regularizer="l1")
    assert [type(each).__name__ for each in private.projection_regularizers(attention)] == ["L1", "NoneType"]


def test_variable_under_mixed_precision() -> None:
    layer = L.Dense(2, dtype="mixed_float16")
    layer.build((None, 3))
    assert isinstance(private.plain_variable(layer.kernel), tf.Variable)
    assert private.plain_variable(1) == 1


def _private_uses(path: Path) -> list[str]:
    """What a file takes of the private names of others: imports, attributes, and names in strings."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"{place} imports {name}" for name in names if PRIVATE_PACKAGES.match(name)]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and PRIVATE_PACKAGES.match(node.value):
            found.append(f"{place} names {node.value!r}")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"getattr", "hasattr", "setattr", "delattr"}:
            name = getattr(node.args[1], "value", "") if len(node.args) > 1 else ""
            if isinstance(name, str) and PRIVATE_NAME.fullmatch(name):
                found.append(f"{place} reaches for {name!r}")
        if isinstance(node, ast.Attribute) and PRIVATE_NAME.fullmatch(node.attr):
            own = ast.unparse(node.value) in {"self", "cls", "super()"} or node.attr in _OF_NAMED_TUPLES
            found += [] if own else [f"{place} reads {ast.unparse(node)}"]
    return found


#: Private names of Airflow's provider and of our own classes, each with its reason at the place.
ALLOWED = re.compile(r"^runners/pod\.py:\d+ reads StepPodOperator\._set_name$")


@pytest.mark.slow
def test_nothing_reaches_around_the_door() -> None:
    uses = [use for path in PACKAGE.rglob("*.py") if path != DOOR for use in _private_uses(path)]
    assert [use for use in uses if not ALLOWED.match(use)] == []


def test_the_look_for_private_names_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from tf_keras.src import backend\nx = layer._name\ny = getattr(layer, '_name')\nz = 'tf_keras.src.layers'\n"
    )
    path = tmp_path / "reaches.py"
    path.write_text(source, encoding="utf-8")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert len(_private_uses(path)) == 4
