"""The one door to private names of tf_keras, tfmot and TensorFlow; nothing else in this package uses any.

Each function says why the public interface is not enough, and what replaces the private name upstream, if anything
does. `tests/core/test_private_names.py` asks each name whether it is still there and has the signature that is counted
on here, so that an upgrade of a pin fails there first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import tensorflow as tf

# Convert a graph that holds no variable, quantise a calibrated file, and store zeros in TFLite's sparse encoding; the
# public converter copies all weights some ten times before it converts, and cannot do the other two. Upstream: none.
from tensorflow.lite.python.convert import mlir_quantize, mlir_sparsify
from tensorflow.lite.python.lite import TFLiteFrozenGraphConverterV2
from tensorflow.lite.python.optimize.calibrator import Calibrator

# Where Keras and TensorFlow look for what a saved model names; the check of untrusted files looks there as they do,
# without importing or calling anything. Upstream: none.
from tensorflow.python.feature_column import feature_column_v2
from tensorflow.python.framework import op_def_registry

# Traces a function without the variables and gradients of `tf.function`. Upstream: none.
from tensorflow.python.framework.func_graph import dismantle_func_graph, func_graph_from_py_func

# The same, see above.
from tensorflow.python.util import dispatch
from tensorflow.python.util.tf_export import get_canonical_name_for_symbol, get_symbol_from_name

# tfmot's layers and wrappers, which its public functions make but its public package does not name. Upstream: none.
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

# `backend`: the loop of recurrent layers, which calls `backend.rnn` and `backend.reverse` by these module attributes.
# The others: tables in which Keras looks up the names in a saved model, see above. Upstream: none.
from tf_keras.src import activations, backend, constraints, initializers, losses, metrics, regularizers

# Layers that `Model.add_loss` and `add_metric` leave in a functional model; and the layer of an operation of TensorFlow
# in old files. Upstream: gone in Keras 3.
from tf_keras.src.engine.base_layer import AddLoss, AddMetric, TensorFlowOpLayer

# How clone_model decides whether a subclass is made as `cls(inputs, outputs, name=...)`.
# Upstream: private in Keras 3 too.
from tf_keras.src.engine.functional import ModuleWrapper, has_functional_like_constructor

# Classes that a saved model may name, or must not; the check of untrusted files tells them apart. Upstream: none.
from tf_keras.src.engine.input_spec import InputSpec
from tf_keras.src.export.export_lib import ReloadedLayer
from tf_keras.src.layers import activation as activation_layers
from tf_keras.src.layers import serialization as layer_tables
from tf_keras.src.layers.core import tf_op_layer

# The layer that the functional API makes of a function of TensorFlow. Upstream: `keras.Operation` of Keras 3.
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

# Classes that a saved model may name, see above. Upstream: none.
from tf_keras.src.layers.preprocessing.index_lookup import IndexLookup
from tf_keras.src.layers.rnn.cell_wrappers import _RNNCellWrapper as RNNCellWrapper
from tf_keras.src.mixed_precision.loss_scale_optimizer import LossScaleOptimizer, LossScaleOptimizerV3
from tf_keras.src.mixed_precision.policy import Policy
from tf_keras.src.optimizers.legacy.optimizer_v2 import OptimizerV2
from tf_keras.src.optimizers.schedules import learning_rate_schedule
from tf_keras.src.saving.legacy.saved_model import constants as saved_model_names

# Refuses Lambda layers of `.h5` files and folders too; the public argument `safe_mode` is read for `.keras` only.
# Upstream: `keras.config.enable_unsafe_deserialization` is the switch for the whole process.
from tf_keras.src.saving.serialization_lib import BUILTIN_MODULES, SafeModeScope

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Args, Drawer, Function, Kwargs, Layer, Model, Optimizer, QuantizeFile, Variable

#: Packages of tf_keras' own layers, and of its applications, which keep some layers to themselves.
LAYERS_PACKAGE = "tf_keras.src.layers."
ENGINE_PACKAGE = "tf_keras.src.engine."
APPLICATIONS_PACKAGE = "tf_keras.src.applications."
#: Modules of tf_keras whose public functions only compute tensors.
FUNCTION_MODULES = frozenset(
    f"tf_keras.src.{name}"
    for name in ("activations", "losses", "metrics.accuracy_metrics", "metrics.regression_metrics")
)
#: What Keras does for a call of a layer on symbolic tensors.
_TRACE = keras.layers.Layer._keras_tensor_symbolic_call
#: One thread at a time puts a function in the place of `_TRACE`.
_PATCHING = RLock()
#: Lists in which a layer notes what its calls did.
_NOTES = ("_inbound_nodes", "_outbound_nodes", "_losses", "_callable_losses", "_metrics")


# Layers and their calls


def call_signature(layer: Layer) -> Any:
    """Keras' record of the signature of a layer's `call`: `arg_names`, `expects_training_arg`, `expects_mask_arg`, ...

    `inspect.signature` does not know what Keras adds for `training` and `mask`. Upstream: `Layer._call_signature`.
    """
    return layer._call_spec


def layers_within(layer: Layer) -> Iterator[Any]:
    """The layer and all layers in it, wrapped ones too; `Model.layers` stops at wrappers. Upstream: the same."""
    yield from layer._flatten_layers()


def package_of(layer: Layer) -> str:
    """The package of tf_keras' layers that a layer's class is of (`convolutional`), or its own module's name."""
    return str(type(layer).__module__.removeprefix(LAYERS_PACKAGE).split(".")[0])


def is_of_keras_layers(layer: Layer) -> bool:
    """Whether the class of a layer is one of tf_keras' own layers."""
    return str(type(layer).__module__).startswith(LAYERS_PACKAGE)


def copy_activity_regularizer(copy: Layer, layer: Layer) -> None:
    """Give a layer the activity regulariser of another; a wrapper's public attribute cannot be set. Upstream: none."""
    copy._activity_regularizer = layer._activity_regularizer


def projection_regularizers(attention: Layer) -> tuple[Any, Any]:
    """Regularisers (of the kernels, of the biases) of a MultiHeadAttention, which has no accessor. Upstream: none."""
    return attention._kernel_regularizer, attention._bias_regularizer


def rename(layer: Layer, name: str) -> None:
    """Rename a layer; the public name cannot be set. Upstream: none."""
    layer._name = name


def place_of_call(layer: Layer, call: object) -> int:
    """Number of a call among the layer's calls, as `get_output_at` counts. Upstream: gone in Keras 3."""
    return int(layer._inbound_nodes.index(call))


def notes_of_calls(layer: Layer) -> list[tuple[Any, str, list[Any]]]:
    """(layer, attribute, list) of every list in which a layer and those in it note calls, losses and metrics."""
    return [
        (part, name, getattr(part, name)) for part in layers_within(layer) for name in _NOTES if hasattr(part, name)
    ]


def plain_variable(value: object) -> Any:
    """The variable inside the one that Keras casts under mixed precision, or the value itself."""
    return getattr(value, "_variable", value)


# Symbolic calls: how a layer's output shapes are found


def trace_outputs(layer: Layer, inputs: object, masks: object, args: Args, kwargs: Kwargs) -> Any:
    """Outputs of a layer's call, found by tracing it. Upstream: the public `Layer.compute_output_spec` of Keras 3."""
    return _TRACE(layer, inputs, masks, args, kwargs)


@contextmanager
def outputs_of_one_layer(layer: Layer, infer: Function) -> Iterator[None]:
    """A call of this layer on symbolic tensors in this context gives what `infer(inputs, masks, args, kwargs)` gives.

    tf_keras has no way to be given the outputs' shapes. Upstream: `compute_output_spec` can be overridden in Keras 3.
    """
    # Past Keras' own `__setattr__`, as the function is no part of the layer.
    object.__setattr__(layer, "_keras_tensor_symbolic_call", infer)
    try:
        yield
    finally:
        object.__delattr__(layer, "_keras_tensor_symbolic_call")


@contextmanager
def outputs_of_all_layers(infer: Function) -> Iterator[None]:
    """The same for every layer: `infer(layer, inputs, masks, args, kwargs)`. One thread at a time."""
    with _PATCHING:
        keras.layers.Layer._keras_tensor_symbolic_call = infer
        try:
            yield
        finally:
            keras.layers.Layer._keras_tensor_symbolic_call = _TRACE


def build_for_call(layer: Layer, inputs: object, args: Args, kwargs: Kwargs) -> None:
    """What a call of a layer does besides computing: it builds the layer, and notes how it was called."""
    with tf.name_scope(layer._name_scope()):
        layer._maybe_build(inputs)
    layer._set_save_spec(inputs, args, kwargs)


# Models


def is_graph_network(model: Model) -> bool:
    """Whether a model is a graph of layers. Upstream: `isinstance(model, keras.src.models.Functional)` of Keras 3."""
    return bool(getattr(model, "_is_graph_network", False))


def calls_by_depth(model: Model) -> dict[int, list[Any]]:
    """Depth -> calls, the only order of a model's calls that Keras records. Upstream: `Function._nodes_by_depth`."""
    return dict(getattr(model, "_nodes_by_depth", {}))


def nested_inputs(model: Model) -> Any:
    """The inputs in the structure that the user gave; `Model.inputs` is flat. Upstream: `Function._inputs_struct`."""
    return model._nested_inputs


def nested_outputs(model: Model) -> Any:
    """The outputs in the user's structure; None for a subclassed model. Upstream: `Function._outputs_struct`."""
    return getattr(model, "_nested_outputs", None)


def output_layers(model: Model) -> list[Any]:
    """The layers whose outputs are the model's; empty for a subclassed model. Upstream: gone in Keras 3."""
    return list(getattr(model, "_output_layers", None) or [])


def history(keras_tensor: KerasTensor) -> Any:
    """(layer, number of its call, number of the result) that a symbolic tensor comes from. Upstream: the same."""
    return keras_tensor._keras_history


def set_mask(tensor: KerasTensor, mask: object) -> None:
    """Put a mask where Keras looks for that of a tensor. Upstream: `keras.src.backend.set_keras_mask`."""
    tensor._keras_mask = mask


def attention_mask(attention: Layer, **operands: KerasTensor) -> Any:
    """The mask that a MultiHeadAttention combines of its operands' masks. Upstream: the same method in Keras 3."""
    return attention._compute_attention_mask(**operands)


def hands_mask_on(layer: Layer) -> bool:
    """Whether a layer's `compute_mask` is Keras' own, which hands the mask on as it is. Upstream: none."""
    return bool(getattr(layer.compute_mask, "_is_default", False))


# Compiling and training


def is_compiled(model: Model) -> bool:
    """Whether `compile` was called. Upstream: `Model.compiled` of Keras 3, which is public."""
    return bool(getattr(model, "_is_compiled", False))


def compile_arguments(model: Model) -> dict[str, Any]:
    """The arguments that the user gave to `compile`, but for the optimizer, read as `Model._get_compile_args` does.

    Upstream: `Model.get_compile_config` of Keras 3, which is public.
    """
    loss, metric, steps = model.compiled_loss, model.compiled_metrics, model._steps_per_execution
    return {
        "loss": loss._user_losses,
        "loss_weights": loss._user_loss_weights,
        "metrics": metric._user_metrics,
        "weighted_metrics": metric._user_weighted_metrics,
        "run_eagerly": model._run_eagerly,  # the property mixes in the switch for the whole process
        "steps_per_execution": None if steps is None else int(steps.numpy()),
        "jit_compile": model._jit_compile,
    }


def tunes_steps_per_execution(model: Model) -> bool:
    """Whether `steps_per_execution="auto"` was given to `compile`. Upstream: the same attribute in Keras 3."""
    return bool(getattr(model, "_autotune_steps_per_execution", False))


def given_learning_rate(optimizer: Optimizer) -> Any:
    """The learning rate as it was given: number, variable, schedule or function. Upstream: the same attribute."""
    legacy = getattr(optimizer, "_hyper", None)
    return legacy.get("learning_rate") if legacy else getattr(optimizer, "_learning_rate", None)


def learning_rate_variables(optimizer: Optimizer) -> list[Any]:
    """The variables that hold a learning rate that a callback may change."""
    rates = (getattr(optimizer, "_learning_rate", None), getattr(optimizer, "_hyper", {}).get("learning_rate"))
    return [rate for rate in rates if isinstance(rate, tf.Variable)]


def names_without_decay(optimizer: Optimizer) -> list[str]:
    """Parts of names of the variables that weight decay leaves alone; they are in no config. Upstream: the same."""
    return list(getattr(optimizer, "_exclude_from_weight_decay_names", None) or [])


def loss_scale_variables(optimizer: Optimizer) -> list[Any]:
    """Variables of the dynamic loss scale of mixed precision. Upstream: `LossScaleOptimizer.dynamic_scale`."""
    weights: Mapping[str, Any] = getattr(getattr(optimizer, "_loss_scale", None), "_weights", {})
    return list(weights.values())


def build_optimizer(optimizer: Optimizer, variables: Sequence[Variable]) -> None:
    """Make the optimizer's variables, which otherwise its first step does; a legacy one has no public `build`."""
    build = getattr(optimizer, "build", None) or optimizer._create_all_weights
    build(variables)


# Random numbers


def own_seed(drawer: Drawer) -> int | None:
    """The seed that a layer's random generator was made with. Upstream: `SeedGenerator._initial_seed`."""
    return getattr(drawer, "_seed", None)


def set_own_seed(drawer: Drawer, seed: int | None) -> None:
    """Set the seed of the kind of Keras' generators that counts it up each time it is traced; others keep theirs."""
    if getattr(drawer, "_rng_type", None) == "legacy_stateful":
        drawer._seed = seed


def make_generator(drawer: Drawer) -> None:
    """Make a layer's generator now; otherwise it does so in its first step."""
    if hasattr(drawer, "_maybe_init"):
        drawer._maybe_init()


def generator_of(drawer: Drawer) -> Any:
    """The generator of TensorFlow inside a generator of Keras, or the drawer itself. Upstream: `SeedGenerator`."""
    return getattr(drawer, "_generator", drawer)


def traces_of(function: tf.types.experimental.PolymorphicFunction) -> list[Any]:
    """The concrete functions of a `tf.function`, which has no public reader. Upstream: none."""
    return list(function._list_all_concrete_functions())


# Wrappers of tfmot, which has no accessors. Upstream: none.


def pruning_arguments(pruning: pruning_impl.Pruning) -> tuple[Any, Any, Any]:
    """(function of the training step, variables, schedule) that tfmot's `Pruning` was made with."""
    return pruning._step_fn, pruning._pruning_vars, pruning._pruning_schedule


def weight_variables(wrapper: Layer) -> list[tuple[Any, Any, dict[str, Any]]]:
    """(variable, quantiser, the quantiser's variables) of each weight that a wrapper quantises; [] for other layers."""
    return list(getattr(wrapper, "_weight_vars", ()))


def output_range_variables(wrapper: Layer) -> dict[str, Any] | None:
    """The variables of a wrapper's output quantiser; None where it has none."""
    return dict(wrapper._output_quantizer_vars) if wrapper._output_quantizers else None


def names_of_operations(group: str) -> list[str]:
    """Names in a module of TensorFlow's generated operations (`gen_math_ops`); no public list groups them."""
    return list(vars(importlib.import_module(f"tensorflow.python.ops.{group}")))


# The converter


def finish_before_quantizing(converter: tf.lite.TFLiteConverter, finish: Callable[[bytes], bytes]) -> None:
    """Have `finish` change the file between its conversion and its calibration. Upstream: none."""
    then = converter._optimize_tflite_model
    converter._optimize_tflite_model = lambda data, *args, **kwargs: then(finish(data), *args, **kwargs)


def quantize_after_calibration(converter: tf.lite.TFLiteConverter, quantize: QuantizeFile) -> None:
    """Have `quantize(data, calibrated, types)` quantise a calibrated file, in place of the converter.

    `data` is the float file, `calibrated` the same with ranges, `types` the other arguments of the converter's own
    method. The public converter can neither be given other ranges nor told which operations stay in float.
    """
    calibrate = converter._quantize

    def replaced(data: bytes, *types: object) -> bytes:
        converter._experimental_calibrate_only = True  # from here on the converter reads it for this call only
        return quantize(data, calibrate(data, *types), types)

    converter._quantize = replaced


def int16_quantizer(calibrated: bytes) -> Any:
    """What quantises a calibrated file to int16 activations; its public class calibrates in the same call."""
    return Calibrator(calibrated, [], [])._calibrator


def function_bodies(graph: tf.Graph) -> list[Any]:
    """Definitions of the functions that a graph calls, without the weights. Upstream: none."""
    return [each.cached_definition for each in graph._functions.values()]
