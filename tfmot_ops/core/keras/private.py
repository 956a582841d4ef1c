"""All uses of private names of tf_keras, tfmot and TensorFlow in this package.

Each function's docstring says why the public interface is not enough, and after "Upstream:" what replaces the private
name in newer versions, if anything does. `tests/core/test_private_names.py` checks that each name exists with the
expected signature, so that an incompatible upgrade fails there first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import tensorflow as tf

# Conversion of a graph without variables, quantisation of a calibrated file, and TFLite's sparse encoding. The public
# converter copies all weights about ten times before converting, and offers neither of the other two. Upstream: none.
from tensorflow.lite.python.convert import mlir_quantize, mlir_sparsify
from tensorflow.lite.python.lite import TFLiteFrozenGraphConverterV2
from tensorflow.lite.python.optimize.calibrator import Calibrator

# Tables in which Keras and TensorFlow look up the names in a saved model. The check of untrusted files (`saving`) reads
# the same tables, without importing or calling anything. Upstream: none.
from tensorflow.python.feature_column import feature_column_v2
from tensorflow.python.framework import op_def_registry

# Traces a function without the variables and gradients of `tf.function`; the other two are further tables for the check
# of untrusted files. Upstream: none.
from tensorflow.python.framework.func_graph import dismantle_func_graph, func_graph_from_py_func
from tensorflow.python.util import dispatch
from tensorflow.python.util.tf_export import get_canonical_name_for_symbol, get_symbol_from_name

# tfmot's layers and wrappers, which its public functions return but its public package does not export. Upstream: none.
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
    QuantizeWrapperV2,
)
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_schedule, pruning_wrapper
from tensorflow_model_optimization.python.core.sparsity.keras.prunable_layer import PrunableLayer
from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_callbacks import (
    PruningSummaries,
    UpdatePruningStep,
)

# The symbolic tensor of the functional API. Upstream: `keras.KerasTensor` of Keras 3.
from tf_keras.__internal__ import KerasTensor

# `backend`: its functions `rnn` and `reverse`, which recurrent layers call, are replaced while a model is converted.
# The others: further tables for the check of untrusted files. Upstream: none.
from tf_keras.src import activations, backend, constraints, initializers, losses, metrics, regularizers

# Layers that `Model.add_loss` and `add_metric` add to a functional model; and the layer for a TensorFlow operation in
# old files. Upstream: gone in Keras 3.
from tf_keras.src.engine.base_layer import AddLoss, AddMetric, TensorFlowOpLayer

# The test of clone_model whether a model subclass can be created by `cls(inputs, outputs, name=...)`.
# Upstream: private in Keras 3 too.
from tf_keras.src.engine.functional import ModuleWrapper, has_functional_like_constructor

# Classes that a saved model may or must not name, for the check of untrusted files. Upstream: none.
from tf_keras.src.engine.input_spec import InputSpec
from tf_keras.src.export.export_lib import ReloadedLayer
from tf_keras.src.layers import activation as activation_layers
from tf_keras.src.layers import serialization as layer_tables
from tf_keras.src.layers.core import tf_op_layer

# The layer that the functional API creates for a TensorFlow function (upstream: `keras.Operation` of Keras 3), and
# classes that a saved model may name, see above (upstream: none).
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda
from tf_keras.src.layers.preprocessing.index_lookup import IndexLookup
from tf_keras.src.layers.rnn.cell_wrappers import _RNNCellWrapper as RNNCellWrapper
from tf_keras.src.mixed_precision.loss_scale_optimizer import LossScaleOptimizer, LossScaleOptimizerV3
from tf_keras.src.mixed_precision.policy import Policy, policy_scope
from tf_keras.src.optimizers.legacy.optimizer_v2 import OptimizerV2
from tf_keras.src.optimizers.schedules import learning_rate_schedule
from tf_keras.src.saving.legacy.saved_model import constants as saved_model_names

# Refuses Lambda layers in `.h5` and SavedModels too; Keras' public argument `safe_mode` is for `.keras` only. Upstream:
# `keras.config.enable_unsafe_deserialization`, for the whole process.
from tf_keras.src.saving.serialization_lib import BUILTIN_MODULES, SafeModeScope

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Args, Function, Kwargs, Layer, Model, Optimizer, QuantizeFile, Rng, Variable

#: Packages of tf_keras' own layers, and of its applications, which define further layers.
LAYERS_PACKAGE = "tf_keras.src.layers."
ENGINE_PACKAGE = "tf_keras.src.engine."
APPLICATIONS_PACKAGE = "tf_keras.src.applications."
#: Modules of tf_keras whose public functions only compute tensors.
FUNCTION_MODULES = frozenset(
    f"tf_keras.src.{name}"
    for name in ("activations", "losses", "metrics.accuracy_metrics", "metrics.regression_metrics")
)
#: Keras' method that computes a layer's symbolic outputs, by tracing its `call`.
_TRACE = keras.layers.Layer._keras_tensor_symbolic_call
#: Held while `_TRACE` is replaced, which affects all threads.
_PATCHING = RLock()
#: Lists to which Keras appends during a layer's symbolic call.
_RECORDS = ("_inbound_nodes", "_outbound_nodes", "_losses", "_callable_losses", "_metrics")


# Layers and their calls


def call_signature(layer: Layer) -> Any:
    """Keras' description of the arguments of a layer's `call`, with `training` and `mask`. Upstream: the same."""
    return layer._call_spec


def layers_within(layer: Layer) -> Iterator[Any]:
    """The layer and all its inner layers; `Model.layers` does not look into wrappers. Upstream: the same."""
    yield from layer._flatten_layers()


def package_of(layer: Layer) -> str:
    """The sub-package of tf_keras.layers that defines a layer's class (`convolutional`), or its top-level package."""
    return str(type(layer).__module__.removeprefix(LAYERS_PACKAGE).split(".")[0])


def is_keras_layer_class(layer: Layer) -> bool:
    """Whether a layer's class is defined in tf_keras.layers."""
    return str(type(layer).__module__).startswith(LAYERS_PACKAGE)


def copy_activity_regularizer(copy: Layer, layer: Layer) -> None:
    """Copy an activity regulariser; the public attribute cannot be set on a wrapper. Upstream: none."""
    copy._activity_regularizer = layer._activity_regularizer


def projection_regularizers(attention: Layer) -> tuple[Any, Any]:
    """(kernel regulariser, bias regulariser) of a MultiHeadAttention; there is no public accessor. Upstream: none."""
    return attention._kernel_regularizer, attention._bias_regularizer


def rename(layer: Layer, name: str) -> None:
    """Rename a layer; the public attribute `name` is read-only. Upstream: none."""
    layer._name = name


def index_of_call(layer: Layer, call: object) -> int:
    """Index of a call among the layer's calls, as for `Layer.get_output_at`. Upstream: gone in Keras 3."""
    return int(layer._inbound_nodes.index(call))


def recorded_call_lists(layer: Layer) -> list[tuple[Any, str, list[Any]]]:
    """(layer, attribute, list) for the lists of recorded calls, losses and metrics of a layer and its inner layers."""
    return [
        (part, name, getattr(part, name)) for part in layers_within(layer) for name in _RECORDS if hasattr(part, name)
    ]


def weight_loss_functions(layer: Layer) -> list[Any]:
    """Functions without arguments that give the regularisation losses of a layer's own weights. Upstream: gone."""
    return list(layer._callable_losses)


def plain_variable(value: object) -> Any:
    """The variable inside Keras' AutoCastVariable (mixed precision); any other value is returned unchanged."""
    return getattr(value, "_variable", value)


# Symbolic calls: how a layer's output shapes are found


def trace_outputs(layer: Layer, inputs: object, masks: object, args: Args, kwargs: Kwargs) -> Any:
    """Outputs of a layer's call, found by tracing it. Upstream: the public `Layer.compute_output_spec` of Keras 3."""
    return _TRACE(layer, inputs, masks, args, kwargs)


@contextmanager
def outputs_of_one_layer(layer: Layer, infer: Function) -> Iterator[None]:
    """In this context, symbolic calls of the layer return `infer(inputs, masks, args, kwargs)` instead of being traced.

    tf_keras accepts no known output shapes. Upstream: `compute_output_spec` of Keras 3 can be overridden.
    """
    # `object.__setattr__`, because Keras' own would track the function as a part of the layer.
    object.__setattr__(layer, "_keras_tensor_symbolic_call", infer)
    try:
        yield
    finally:
        object.__delattr__(layer, "_keras_tensor_symbolic_call")


@contextmanager
def outputs_of_all_layers(infer: Function) -> Iterator[None]:
    """Like `outputs_of_one_layer`, for all layers: `infer(layer, inputs, masks, args, kwargs)`; locked for threads."""
    with _PATCHING:
        keras.layers.Layer._keras_tensor_symbolic_call = infer
        try:
            yield
        finally:
            keras.layers.Layer._keras_tensor_symbolic_call = _TRACE


def build_for_call(layer: Layer, inputs: object, args: Args, kwargs: Kwargs) -> None:
    """The side effects of a layer's first call: builds the layer, and records the input signature for saving."""
    with tf.name_scope(layer._name_scope()):
        layer._maybe_build(inputs)
    layer._set_save_spec(inputs, args, kwargs)


# Models


def is_graph_network(model: Model) -> bool:
    """Whether a model is a graph of layers. Upstream: `isinstance(model, keras.src.models.Functional)` of Keras 3."""
    return bool(getattr(model, "_is_graph_network", False))


def calls_by_depth(model: Model) -> dict[int, list[Any]]:
    """Depth -> calls; Keras has no public order of a model's calls. Upstream: `Function._nodes_by_depth`."""
    return dict(getattr(model, "_nodes_by_depth", {}))


def nested_inputs(model: Model) -> Any:
    """The inputs in the user's structure; `Model.inputs` is a flat list. Upstream: `Function._inputs_struct`."""
    return model._nested_inputs


def nested_outputs(model: Model) -> Any:
    """The outputs in the user's structure; None for a subclassed model. Upstream: `Function._outputs_struct`."""
    return getattr(model, "_nested_outputs", None)


def output_layers(model: Model) -> list[Any]:
    """The layers that compute the model's outputs; empty for a subclassed model. Upstream: gone in Keras 3."""
    return list(getattr(model, "_output_layers", None) or [])


def history(keras_tensor: KerasTensor) -> Any:
    """(layer, index of its call, index of the result) that produced a symbolic tensor. Upstream: the same."""
    return keras_tensor._keras_history


def set_mask(tensor: KerasTensor, mask: object) -> None:
    """Set a tensor's Keras mask; there is no public setter. Upstream: `keras.src.backend.set_keras_mask`."""
    tensor._keras_mask = mask


def attention_mask(attention: Layer, **operands: KerasTensor) -> Any:
    """The attention mask of a MultiHeadAttention, combined from its operands' masks. Upstream: the same method."""
    return attention._compute_attention_mask(**operands)


def passes_mask_through(layer: Layer) -> bool:
    """Whether a layer has Keras' default `compute_mask`, which returns the input's mask. Upstream: none."""
    return bool(getattr(layer.compute_mask, "_is_default", False))


# Compiling and training


def is_compiled(model: Model) -> bool:
    """Whether `compile` was called. Upstream: `Model.compiled` of Keras 3, which is public."""
    return bool(getattr(model, "_is_compiled", False))


def compile_arguments(model: Model) -> dict[str, Any]:
    """The user's arguments of `compile` except the optimizer. Upstream: `Model.get_compile_config`, which is public."""
    loss, metric, steps = model.compiled_loss, model.compiled_metrics, model._steps_per_execution
    return {
        "loss": loss._user_losses,
        "loss_weights": loss._user_loss_weights,
        "metrics": metric._user_metrics,
        "weighted_metrics": metric._user_weighted_metrics,
        "run_eagerly": model._run_eagerly,  # the public property also depends on tf.config.run_functions_eagerly
        "steps_per_execution": None if steps is None else int(steps.numpy()),
        "jit_compile": model._jit_compile,
    }


def tunes_steps_per_execution(model: Model) -> bool:
    """Whether `compile` was called with `steps_per_execution="auto"`. Upstream: the same attribute in Keras 3."""
    return bool(getattr(model, "_autotune_steps_per_execution", False))


def given_learning_rate(optimizer: Optimizer) -> Any:
    """The user's learning rate: a number, variable, schedule or function. Upstream: the same attribute."""
    legacy = getattr(optimizer, "_hyper", None)
    return legacy.get("learning_rate") if legacy else getattr(optimizer, "_learning_rate", None)


def learning_rate_variables(optimizer: Optimizer) -> list[Any]:
    """The variables of a learning rate without a schedule; callbacks may change them. Upstream: the same attribute."""
    rates = (getattr(optimizer, "_learning_rate", None), getattr(optimizer, "_hyper", {}).get("learning_rate"))
    return [rate for rate in rates if isinstance(rate, tf.Variable)]


def names_without_decay(optimizer: Optimizer) -> list[str]:
    """Parts of the names of variables without weight decay; `get_config` lacks them. Upstream: the same."""
    return list(getattr(optimizer, "_exclude_from_weight_decay_names", None) or [])


def loss_scale_variables(optimizer: Optimizer) -> list[Any]:
    """Variables of the dynamic loss scale of mixed precision. Upstream: `LossScaleOptimizer.dynamic_scale`."""
    weights: Mapping[str, Any] = getattr(getattr(optimizer, "_loss_scale", None), "_weights", {})
    return list(weights.values())


def refresh_trainable_state(model: Model) -> None:
    """Train the layers that are trainable now, not those that were when `compile` was called. Upstream: the same."""
    object.__setattr__(model, "_compiled_trainable_state", model._get_trainable_state())  # Keras' own would track it


def build_optimizer(optimizer: Optimizer, variables: Sequence[Variable]) -> None:
    """Create the optimizer's variables before its first step; a legacy optimizer has no public `build`."""
    build = getattr(optimizer, "build", None) or optimizer._create_all_weights
    build(variables)


# Random numbers


def own_seed(rng: Rng) -> int | None:
    """The seed with which a layer's random generator was created. Upstream: `SeedGenerator._initial_seed`."""
    return getattr(rng, "_seed", None)


def set_own_seed(rng: Rng, seed: int | None) -> None:
    """Set the seed of a `legacy_stateful` generator, which increments it at each trace; no effect on other kinds."""
    if getattr(rng, "_rng_type", None) == "legacy_stateful":
        rng._seed = seed


def make_generator(rng: Rng) -> None:
    """Create the TensorFlow generator inside a Keras generator, which Keras otherwise does at the first step."""
    if hasattr(rng, "_maybe_init"):
        rng._maybe_init()


def generator_of(rng: Rng) -> Any:
    """The TensorFlow generator inside a Keras generator, or the argument itself. Upstream: `SeedGenerator`."""
    return getattr(rng, "_generator", rng)


def traces_of(function: tf.types.experimental.PolymorphicFunction) -> list[Any]:
    """All concrete functions of a `tf.function`; there is no public accessor. Upstream: none."""
    return list(function._list_all_concrete_functions())


# Wrappers of tfmot, which has no accessors. Upstream: none.


def pruning_arguments(pruning: pruning_impl.Pruning) -> tuple[Any, Any, Any]:
    """(function that returns the training step, variables, schedule): constructor arguments of tfmot's `Pruning`."""
    return pruning._step_fn, pruning._pruning_vars, pruning._pruning_schedule


def weight_variables(wrapper: Layer) -> list[tuple[Any, Any, dict[str, Any]]]:
    """(variable, quantiser, quantiser's variables) for each weight that a wrapper quantises; [] for other layers."""
    return list(getattr(wrapper, "_weight_vars", ()))


def output_range_variables(wrapper: Layer) -> dict[str, Any] | None:
    """The variables of a wrapper's output quantiser by name; None for a wrapper without an output quantiser."""
    return dict(wrapper._output_quantizer_vars) if wrapper._output_quantizers else None


def names_of_operations(group: str) -> list[str]:
    """Names in a module of generated TensorFlow operations (`gen_math_ops`); there is no public list by group."""
    return list(vars(importlib.import_module(f"tensorflow.python.ops.{group}")))


# The converter


def prepare_converter(converter: tf.lite.TFLiteConverter, finish: Callable[[bytes], bytes], per_channel: bool) -> None:
    """Insert `finish` (float file -> float file) between conversion and calibration; set the scales. Upstream: none."""
    converter._experimental_disable_per_channel = not per_channel
    then = converter._optimize_tflite_model
    converter._optimize_tflite_model = lambda data, *args, **kwargs: then(finish(data), *args, **kwargs)


def quantize_after_calibration(converter: tf.lite.TFLiteConverter, quantize: QuantizeFile) -> None:
    """Replace a converter's quantisation step by `quantize(data, calibrated, types)`. Upstream: none.

    `data` is the float file, `calibrated` the same file with ranges, and `types` are the other arguments of the
    converter's own method. The public converter accepts neither other ranges nor a list of float operations.
    """
    calibrate = converter._quantize

    def replaced(data: bytes, *types: object) -> bytes:
        converter._experimental_calibrate_only = True  # the only later reader is the next call
        return quantize(data, calibrate(data, *types), types)

    converter._quantize = replaced


def int16_quantizer(calibrated: bytes) -> Any:
    """TensorFlow's quantiser for int16 activations; its public class can only calibrate and quantise in one call."""
    return Calibrator(calibrated, [], [])._calibrator


def function_bodies(graph: tf.Graph) -> list[Any]:
    """FunctionDefs of the functions that a graph calls, without copying its weights. Upstream: none."""
    return [function.cached_definition for function in graph._functions.values()]
