"""Model -> TFLite: one traced function in which every number is a constant.

The graph is emitted call by call instead of tracing the Keras model: BatchNormalization is folded into the
kernel before it (rounding per channel commutes with a scale per channel), a free-standing affine becomes
one 1x1 depthwise convolution whose kernel *is* the scale, and tied ranges are emitted as one. So the
converter has nothing left to fold, and merges no two constants that it later changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapper

from tfmot_ops.contract import Activations, Backend, Method, Recipe, Weights
from tfmot_ops.core.convert import converter_of
from tfmot_ops.core.graph.ir import Graph, Node, tensors, unique_names
from tfmot_ops.core.graph.linear import ONE_AXIS, linear
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import rebuild
from tfmot_ops.core.graph.run import run_graph
from tfmot_ops.core.kernels import Kernel, kernels
from tfmot_ops.core.layers import Affine, scale_and_offset
from tfmot_ops.core.legacy_keras import keras
from tfmot_ops.core.profile import weight_zeros
from tfmot_ops.core.ptq_ai_edge import quantize_file
from tfmot_ops.core.quantize import calibration_batches, tied_ranges
from tfmot_ops.core.quantizers import FixedRangeQuantizer, WeightQuantizer, round_within
from tfmot_ops.core.roles import Role, role
from tfmot_ops.core.sparsity import inner_layer, prunable, required_ratio, tolerance
from tfmot_ops.errors import ExportError, SparsityLostError

_L = keras.layers


def export_tflite(model: keras.Model, recipe: Recipe, calibration: Any = None) -> bytes:
    """Convert a model to a TFLite file, batch size 1.

    Args:
        model: what `quantize` returned for a QAT recipe; a float model for a PTQ recipe or one without
            quantisation.
        recipe: says the numeric types; inputs and outputs are int8 where the activations are.
        calibration: representative data for PTQ (see `quantize`); for QAT it only gives spatial sizes that
            the model leaves open.

    Returns:
        The flatbuffer.

    Raises:
        ExportError: the converter refuses the model, PTQ has no calibration data, or a size stays unknown.
        SparsityLostError: an int8 kernel has fewer zeros than the recipe's sparsity; the layer is named.
    """
    quantized = any(isinstance(layer, QuantizeWrapper | QuantizeLayer) for layer in model.layers)
    graph = read_graph(model)
    _check_kind(recipe, quantized)
    if quantized:
        required = _required_of_quantized(graph)
    else:
        normal = normalize_graph(graph)
        required = _required_of_float(normal, model, recipe)
        # Rebuilt, as a layer that a rule made is built only by its call.
        graph = read_graph(rebuild(normal))
    converter = converter_of(_inference(graph), _signature(graph, calibration))
    _configure(converter, recipe, graph, calibration, quantized=quantized)
    try:
        with warnings.catch_warnings():
            # A QAT graph carries its ranges, so the missing representative set it warns of is right.
            warnings.simplefilter("ignore")
            data: bytes = converter.convert()
    except Exception as error:  # the converter raises bare Exception subclasses and RuntimeError
        raise ExportError(
            "the TFLite converter refused the model",
            required="operations that TFLite has",
            received=f"{type(error).__name__}: {error}",
            remedy="exclude the layer it names in the recipe's quantization.scope",
        ) from error
    if recipe.quantization and recipe.quantization.backend is Backend.AI_EDGE_QUANTIZER:
        data = quantize_file(data, recipe, lambda: _representative(recipe, graph, calibration)())  # noqa: PLW0108 - lazy
    _check_sparsity(data, required)
    return data


def _check_kind(recipe: Recipe, quantized: bool) -> None:
    wants = recipe.quantization is not None and recipe.quantization.method is Method.QAT
    if wants != quantized:
        raise ExportError(
            "the model does not fit the recipe",
            required="a model from core.quantize" if wants else "a float model",
            received="a quantised model" if quantized else "a float model",
            remedy="call core.quantize first" if wants else "export the model before core.quantize",
        )


def _configure(converter: Any, recipe: Recipe, graph: Graph, calibration: Any, *, quantized: bool) -> None:
    quantization = recipe.quantization
    if quantization is None or quantization.backend is Backend.AI_EDGE_QUANTIZER:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization.weights is Weights.FLOAT16:
        converter.target_spec.supported_types = [tf.float16]
    if quantization.activations is Activations.FLOAT32:
        return
    integer = tf.int8 if quantization.activations is Activations.INT8 else tf.int16
    if all(tensor.is_float for tensor in graph.inputs()):
        converter.inference_input_type = integer
    converter.inference_output_type = integer
    if integer is tf.int16:
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
    if not quantized:
        converter.representative_dataset = _representative(recipe, graph, calibration)


def _representative(recipe: Recipe, graph: Graph, calibration: Any) -> Callable[[], Iterator[list[np.ndarray]]]:
    samples = recipe.quantization.calibration_samples if recipe.quantization else 0
    if calibration is None:
        raise ExportError(
            f"recipe {recipe.name!r} quantises after training",
            required="calibration data",
            received="none",
            remedy="give calibration=",
        )

    def rows() -> Iterator[list[np.ndarray]]:
        for batch in calibration_batches(graph, calibration, samples):
            for row in range(len(batch[0])):
                yield [part[row : row + 1].astype(t.dtype) for part, t in zip(batch, graph.inputs(), strict=True)]

    return rows


def _signature(graph: Graph, calibration: Any) -> list[tf.TensorSpec]:
    shapes = [list(tensor.shape) for tensor in graph.inputs()]
    if calibration is not None and any(None in shape[1:] for shape in shapes):
        batch = next(iter(calibration_batches(graph, calibration, 1)))
        shapes = [[1, *part.shape[1:]] for part in batch]
    specs = []
    for tensor, shape in zip(graph.inputs(), shapes, strict=True):
        name = graph.input_names[id(tensor)]
        if None in shape[1:]:
            raise ExportError(
                f"input {name!r} has no fixed size",
                required="a size for every axis but the batch",
                received=str(shape),
                remedy="give calibration data of the size the device will use",
            )
        specs.append(tf.TensorSpec([1, *shape[1:]], tensor.dtype, name=name))
    return specs


def _inference(graph: Graph) -> Callable[..., Any]:
    emit = _Emitter(graph)

    def inference(*inputs: Any) -> Any:
        # A list keeps the order of the model's outputs; a dict would be sorted by name.
        return tf.nest.flatten(run_graph(graph, list(inputs), emit))

    return inference


class _Emitter:
    """Emits the TensorFlow operations of one call, in inference, with constants for its weights.

    A convolution over one axis is emitted as one over two, [N, 1, T, C]; its result keeps that form until the call
    whose values are rounded, as a reshape between them would keep the converter from computing them as one.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ranges = tied_ranges(graph)
        consumers = graph.consumers()
        results = {id(tensor) for tensor in tensors(graph.outputs)}
        #: id(affine call) of those that are folded into the convolution before.
        self.folded: set[int] = set()
        #: id(convolution call) -> the affine call folded into it.
        self.folds: dict[int, Node] = {}
        #: id(call) of those that are computed as one with the next.
        self.fused: set[int] = set()
        for node in graph.nodes:
            outputs = tensors(node.outputs)
            readers = consumers.get(id(outputs[0]), []) if len(outputs) == 1 else []
            if len(readers) != 1 or id(outputs[0]) in results or id(node.layer) in self.ranges:
                continue
            kind, next_kind = (role(inner_layer(each.layer)) for each in (node, readers[0]))
            if kind is Role.CONVOLUTION and next_kind is Role.AFFINE:
                self.folds[id(node)] = readers[0]
                self.folded.add(id(readers[0]))
            if kind in {Role.CONVOLUTION, Role.AFFINE} and next_kind in {Role.AFFINE, Role.RELU}:
                self.fused.add(id(node))

    def __call__(self, node: Node, args: Any, kwargs: Any) -> Any:
        layer = inner_layer(node.layer)
        with tf.name_scope(scope_name(layer.name)):
            result = self._compute(node, layer, args, kwargs)
            outputs = tensors(node.outputs)
            if len(outputs) != 1 or not outputs[0].is_float:
                return result
            result = self._quantize_output(node, result)
            if id(node) not in self.fused and len(result.shape) > len(outputs[0].shape):
                return tf.squeeze(result, 1)
            return result

    def _compute(self, node: Node, layer: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(node.layer, QuantizeLayer) or id(node) in self.folded:
            return args[0]
        if getattr(getattr(node.layer, "quantize_config", None), "keep_float", False):
            args = tf.nest.map_structure(_float_barrier, args)
        kind = role(layer)
        if kind is Role.CONVOLUTION:
            return self._convolution(node, layer, args[0])
        if kind is Role.AFFINE:
            return _affine(layer, self.graph, args[0], rounded=bool(self.ranges))
        if kind is Role.GATHER:
            return self._gather(node, layer, args[0])
        return _call(layer, args, kwargs)

    def _convolution(self, node: Node, layer: Any, value: Any) -> Any:
        kernel_name = kernels(layer)[0].attribute
        weights = dict(zip((kernel_name, "bias"), _constants(self.graph, layer), strict=False))
        kernel, bias = weights[kernel_name], weights.get("bias")
        quantizer, mask = _weight_quantizer(node.layer)
        if mask is not None:
            kernel = kernel * mask
        # Of a kernel with one scale; the fold gives each channel its own, and leaves the levels as they are.
        limits = np.max(np.abs(kernel)) if quantizer is not None and quantizer.keep_clusters else None
        affine = self.folds.get(id(node))
        if affine is not None:
            scale, offset = affine_constants(inner_layer(affine.layer), self.graph)
            kernel = kernel * _along_outputs(kernels(layer)[0], kernel, scale)
            bias = offset if bias is None else bias * scale + offset
            limits = None if limits is None else limits * np.abs(scale)
        if type(layer) in ONE_AXIS:
            kernel = kernel[np.newaxis]
        result = linear(layer, _kernel_constant(kernel, quantizer, limits), value)
        return result if bias is None else tf.nn.bias_add(result, tf.constant(bias, name="bias"))

    def _gather(self, node: Node, layer: Any, indices: Any) -> Any:
        (table,) = _constants(self.graph, layer)
        quantizer, mask = _weight_quantizer(node.layer)
        constant = tf.constant(table if mask is None else table * mask, name="kernel")
        table = constant if quantizer is None else quantizer.round(constant)
        return tf.gather(table, tf.cast(indices, tf.int32))

    def _quantize_output(self, node: Node, value: Any) -> Any:
        if id(node.layer) in self.ranges:
            low, high = self.ranges[id(node.layer)]
            return tf.quantization.fake_quant_with_min_max_args(value, low, high, num_bits=8)
        fixed = getattr(getattr(node.layer, "quantize_config", node.layer), "output", None)
        return fixed(value, False, {}) if isinstance(fixed, FixedRangeQuantizer) else value


def _kernel_constant(kernel: np.ndarray, quantizer: WeightQuantizer | None, limits: Any = None) -> Any:
    if quantizer is None:
        return tf.constant(kernel, name="kernel")
    if limits is not None:
        return round_within(tf.constant(kernel, name="kernel"), tf.constant(limits, tf.float32))
    if quantizer.swap_channels:
        # The converter cannot move a per-channel range along with the transposition it makes of this kernel; it finds
        # the same scales by itself in weights that are rounded already.
        with tf.init_scope():
            rounded = quantizer.round(tf.constant(kernel)).numpy()
        return tf.constant(rounded, name="kernel")
    return quantizer.round(tf.constant(kernel, name="kernel"))


def _float_barrier(value: Any) -> Any:
    """The same value behind an operation that TFLite has in float only, and that no pass folds away.

    The converter quantises whatever stands between two ranges; a sign times a magnitude keeps it out.
    """
    return tf.sign(value) * tf.abs(value) if tf.is_tensor(value) else value


def _along_outputs(kernel: Kernel, value: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A scale per output channel in the shape that multiplies a kernel."""
    if kernel.channels_axes > 1:
        return scale.reshape(value.shape[-kernel.channels_axes :])
    return scale[:, np.newaxis] if kernel.swap_channels else scale


def affine_constants(layer: Any, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), each [channels], of what a BatchNormalization or Affine computes in inference."""
    weights = _constants(graph, layer)
    if isinstance(layer, Affine):
        return scale_and_offset(weights)
    gamma = weights.pop(0) if layer.scale else np.ones_like(weights[-1])
    beta = weights.pop(0) if layer.center else np.zeros_like(weights[-1])
    mean, variance = weights
    scale = gamma / np.sqrt(variance + layer.epsilon)
    return scale, beta - mean * scale


def _constants(graph: Graph, layer: Any) -> list[np.ndarray]:
    # Out of the function being traced, where a variable still has a value.
    with tf.init_scope():
        return [np.asarray(weight, np.float32) for weight in graph.weights_of(layer)]


def _affine(layer: Any, graph: Graph, value: Any, *, rounded: bool) -> Any:
    """A free-standing affine as a 1x1 depthwise convolution, its input reshaped to [N, H, W, C] where needed."""
    scale, offset = affine_constants(layer, graph)
    shape = value.shape.as_list()
    batch, *sizes, channels = shape
    scale, offset = np.broadcast_to(scale, (channels,)), np.broadcast_to(offset, (channels,))
    is_image = len(sizes) == 2  # noqa: PLR2004 - height and width
    image = value if is_image else tf.reshape(value, [batch, 1, int(np.prod(sizes, dtype=int)), channels])
    kernel = tf.constant(scale.reshape(1, 1, channels, 1), name="kernel")
    if rounded:
        # Only in a QAT graph: one fake-quant operation, and the converter quantises nothing else by itself.
        kernel = WeightQuantizer(per_channel=True, channels_axes=2).round(kernel)
    result = tf.nn.depthwise_conv2d(image, kernel, [1, 1, 1, 1], "VALID")
    result = tf.nn.bias_add(result, tf.constant(offset, name="bias"))
    return result if is_image else tf.reshape(result, shape)


def _call(layer: Any, args: Any, kwargs: Any) -> Any:
    if layer._call_spec.expects_training_arg:  # noqa: SLF001 - Keras' own record of the signature
        kwargs = kwargs | {"training": False}
    return layer.call(*args, **kwargs)


def _weight_quantizer(layer: Any) -> tuple[WeightQuantizer | None, np.ndarray | None]:
    for _, quantizer, extra in getattr(layer, "_weight_vars", ()):
        with tf.init_scope():
            return quantizer, extra["mask"].numpy() if "mask" in extra else None
    return None, None


def scope_name(name: str) -> str:
    """A name scope that says the layer: TFLite's tensors are named by it."""
    # A leading character that a scope may have; the rest is a layer name already.
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in f"L.{name}")


def _required_of_quantized(graph: Graph) -> dict[str, tuple[float, int]]:
    """Layer name -> (fraction of zeros its kernel has to hold in the file, its size), as its quantiser says."""
    return {
        inner_layer(node.layer).name: (quantizer.required_sparsity, int(variable.shape.num_elements()))
        for node in graph.nodes
        for variable, quantizer, _ in getattr(node.layer, "_weight_vars", ())
        if quantizer.required_sparsity
    }


def _required_of_float(graph: Graph, model: keras.Model, recipe: Recipe) -> dict[str, tuple[float, int]]:
    """The same for a normalised float graph, as the recipe says."""
    if recipe.sparsity is None:
        return {}
    chosen, names = prunable(model, recipe), unique_names(dict.fromkeys(node.path for node in graph.nodes))
    return {
        # The kernel is the first weight of every layer that has one.
        names[node.path]: (ratio, graph.weights_of(node.layer)[0].size)
        for node in graph.nodes
        for kernel in kernels(node.layer)
        if (ratio := required_ratio(chosen, node, kernel, recipe.sparsity.ratio))
    }


def _check_sparsity(data: bytes, required: dict[str, tuple[float, int]]) -> None:
    if not required:
        return
    weights = weight_zeros(data)
    sparsity = {tensor: zeros / size for tensor, (zeros, size) in weights.items()}
    # The converter takes the name from a kernel that several calls share: each such layer takes one of its size.
    unnamed = sorted((zeros, tensor) for tensor, zeros in sparsity.items() if "L." not in tensor)
    for name, (ratio, size) in required.items():
        found = [zeros for tensor, zeros in sparsity.items() if f"{scope_name(name)}/" in tensor]
        if not found:
            entry = next((entry for entry in reversed(unnamed) if weights[entry[1]][1] == size), None)
            if entry is not None:
                unnamed.remove(entry)
                found = [entry[0]]
        if not found or min(found) < ratio - tolerance(size):
            raise SparsityLostError(
                f"layer {name!r} lost its sparsity in the TFLite file",
                required=f"{ratio:.3f} zeros",
                received=f"{min(found):.3f}" if found else f"no weight tensor of {size} weights for it",
                remedy="quantise the stripped model with the same recipe, so that its zeros are held",
            )
