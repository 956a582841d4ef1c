"""Emits a layer graph as TensorFlow inference operations with constant weights, the input of the TFLite converter.

The graph is emitted call by call instead of tracing the Keras model. BatchNormalization is folded into the kernel
before it: round(kernel) * scale = round(kernel * scale) if both have one scale per channel. An affine without a
convolution before it becomes a 1x1 depthwise convolution whose kernel is the affine's scale. Tensors that TFLite ties
to one range are emitted with one range. So the converter has nothing left to fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.finite import require_finite_folded
from tfmot_ops.core.graph.integer_inputs import integer_valued_tensors, uses_integer_values
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.layers import Affine, LearnedTensor, MaskedScores, Power, scale_and_offset
from tfmot_ops.core.graph.operations import Kernel, Role
from tfmot_ops.core.graph.roles import is_elu, kernels, role, spec_of
from tfmot_ops.core.graph.run import run_graph
from tfmot_ops.core.graph.weight_only import weight_only_calls, weight_only_value
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.private import QuantizeLayer
from tfmot_ops.core.keras.types import Args, Array, Kwargs, Layer, TensorLike
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.quantization.quantizers import WeightQuantizer, round_within, symmetric_limits
from tfmot_ops.core.quantization.range_quantizers import QuantizerWithoutVariables
from tfmot_ops.core.quantization.ranges import Ranges, tied_ranges, with_unambiguous_zero
from tfmot_ops.core.quantization.scales import smallest_limits
from tfmot_ops.core.quantization.scheme import output_quantizer
from tfmot_ops.core.tflite.barriers import call_between_barriers, call_for_inference, float_barrier, float_call
from tfmot_ops.core.tflite.late_weights import KernelLayout, LateWeights
from tfmot_ops.core.tflite.scopes import call_scopes
from tfmot_ops.core.tflite.tables import Tables
from tfmot_ops.core.tflite.tensor_ops import add_bias, restore_shape


def inference_function(
    graph: Graph,
    late: LateWeights | None,
    float_calls: AbstractSet[Node] = frozenset(),
    tables: Tables | None = None,
    *,
    per_channel: bool = True,
    range_of_reshaped: bool = True,
) -> Callable[..., Any]:
    """The graph as a TensorFlow function (inputs) -> list of outputs, to be traced.

    Args:
        graph: normalised, quantised or float.
        late: collects the kernels that are written into the file after the conversion; None emits all kernels.
        float_calls: the calls that stay in float, and are not fused with the calls around them.
        tables: collects the functions that become tables after the conversion; None emits the functions themselves.
        per_channel: whether a free-standing affine, a depthwise convolution in the file, has a scale for each channel.
        range_of_reshaped: whether a result that is reshaped gets its range on both sides of the reshape. Without the
            second one, the converter moves the reshape behind a sum or product, which can lose its range. With it, the
            converter refuses some products.
    """
    emit = _InferenceEmitter(
        graph, late, float_calls, tables, per_channel=per_channel, range_of_reshaped=range_of_reshaped
    )

    def inference(*inputs: TensorLike) -> Any:
        if late is not None:
            late.start_trace()
        if tables is not None:
            tables.start_trace()
        # A list keeps the order of the model's outputs; a dict would be sorted by name.
        return tf.nest.flatten(run_graph(graph, list(inputs), emit))

    return inference


class _InferenceEmitter:
    """Emits the TensorFlow inference operations of one call, with constant weights.

    A 1D convolution is emitted as a 2D one on [N, 1, T, C]. The result stays [N, 1, T, C] up to the end of the fused
    calls (convolution, affine, ReLU), as a reshape between them would prevent the converter from fusing them.
    """

    def __init__(
        self,
        graph: Graph,
        late: LateWeights | None,
        float_calls: AbstractSet[Node],
        tables: Tables | None,
        *,
        per_channel: bool,
        range_of_reshaped: bool,
    ) -> None:
        self.graph = graph
        self.tables = tables
        self.per_channel = per_channel
        self.range_of_reshaped = range_of_reshaped
        self.float_calls = float_calls
        self.exact = integer_valued_tensors(graph)
        self.late = late
        self.constant = weight_only_calls(graph)
        self.scopes = call_scopes(graph)
        self.calls = Counter(inner_layer(node.layer) for node in graph.nodes)
        #: Convolution call -> the affine call folded into it.
        self.folds: dict[Node, Node] = {}
        #: Calls that TFLite computes as one operation with the next call.
        self.fused: set[Node] = set()
        self._find_fused_calls()
        self.folded = set(self.folds.values())
        self.ranges = Ranges(graph, self._largest_weight)
        #: Layer -> (low, high) of its output, in a QAT graph; empty for a float graph.
        self.range_of = self.ranges.of_layer

    def _find_fused_calls(self) -> None:
        """Fill `folds` and `fused`, with calls whose result has no range of its own and a single reader."""
        ranged, consumers, results = tied_ranges(self.graph), self.graph.readers(), set(tensors(self.graph.outputs))
        for node in self.graph.nodes:
            outputs = tensors(node.outputs)
            readers = consumers.get(outputs[0], []) if len(outputs) == 1 else []
            if len(readers) != 1 or outputs[0] in results or node.layer in ranged:
                continue
            if node in self.float_calls or readers[0] in self.float_calls:
                continue
            kind, next_kind = (role(inner_layer(call.layer)) for call in (node, readers[0]))
            if kind is Role.CONVOLUTION and next_kind is Role.AFFINE:
                self.folds[node] = readers[0]
            if kind in {Role.CONVOLUTION, Role.AFFINE} and next_kind in {Role.AFFINE, Role.RELU}:
                self.fused.add(node)

    def __call__(self, node: Node, args: Args, kwargs: Kwargs) -> Any:
        layer = inner_layer(node.layer)
        # A scope that ends in `/` is taken as it is; TensorFlow would number others.
        with tf.name_scope(self.scopes[node]):
            result = self._compute(node, layer, args, kwargs)
            outputs = tensors(node.outputs)
            if len(outputs) != 1 or not outputs[0].is_float:
                return result
            # The only tensor may be in a list or a dict, as of `tf.split(x, 1)`.
            value = self._quantize_output(node, *tf.nest.flatten(result))
            shaped = value if node in self.fused else restore_shape(value, outputs[0].shape)
            if shaped is not value and self.range_of_reshaped:
                shaped = self._quantize_output(node, shaped)
            return tf.nest.pack_sequence_as(result, [shaped])

    def _compute(self, node: Node, layer: Layer, args: Args, kwargs: Kwargs) -> Any:
        """Emit a call without the quantiser of its output; `layer` is the layer within a wrapper."""
        if isinstance(node.layer, QuantizeLayer) or node in self.folded:
            return args[0]
        if node in self.constant:
            is_weight = isinstance(layer, LearnedTensor)
            return _constant(self.graph, layer) if is_weight else call_for_inference(layer, args, kwargs)
        if node in self.float_calls:
            return self._in_float(node, layer, args, kwargs)
        kind = role(layer)
        # The converter would spread a range over a slice of integers, as over any call that passes values on.
        keep_float = _is_kept_float(node) or bool(self.range_of and uses_integer_values(node, self.exact))
        if (kind is Role.FLOAT and self.range_of) or (keep_float and kind in {Role.PASS, Role.SAME_SCALE}):
            return float_call(layer, args, kwargs)
        tables = self.tables if self.range_of and not keep_float else None
        if tables is not None and tables.takes(spec_of(layer)):
            return self._table(node, layer, args, kwargs)
        if keep_float:
            args = tf.nest.map_structure(self._barrier_unless_kept, node.args, args)
        own = {Role.CONVOLUTION: self._convolution, Role.AFFINE: self._affine, Role.GATHER: self._gather}.get(kind)
        own = self._masked_scores if isinstance(layer, MaskedScores) else own
        return call_for_inference(layer, args, kwargs) if own is None else own(node, layer, args[0])

    def _masked_scores(self, node: Node, layer: Layer, value: TensorLike) -> Any:
        """Masked scores get the lowest value of the output's range, as a lower one would widen it."""
        is_int8 = node.layer in self.range_of
        return layer.select(value, self.range_of[node.layer][0]) if is_int8 else call_for_inference(layer, (value,), {})

    def _table(self, node: Node, layer: Layer, args: Args, kwargs: Kwargs) -> Any:
        """The placeholder for a function that becomes a table."""
        if self.tables is None or layer.name in self.tables.refused:
            return call_between_barriers(layer, args, kwargs)
        exponent = weight_only_value(node.inputs()[1], self.graph) if isinstance(layer, Power) else None
        value = args[0] if exponent is None else args[0][0]
        compute = lambda value: call_for_inference(  # noqa: E731 - as short as a name for it
            layer, (value if exponent is None else [value, exponent],), kwargs
        )
        ranges = self.ranges.range(node.inputs()[0]), self.ranges.range(node.output())
        return self.tables.placeholder(layer.name, compute, value, ranges, is_elu=is_elu(layer))

    def _in_float(self, node: Node, layer: Layer, args: Args, kwargs: Kwargs) -> Any:
        """Emit a call of `float_calls` such that the converter leaves it in float."""
        if self.range_of:
            args, kwargs = tf.nest.map_structure(self._barrier_at_entrance, (node.args, node.kwargs), (args, kwargs))
        if role(layer) is Role.AFFINE:
            scale, offset = affine_constants(layer, self.graph)
            return args[0] * tf.constant(scale) + tf.constant(offset)
        return call_for_inference(layer, args, kwargs)

    def _barrier_at_entrance(self, tensor: object, value: TensorLike) -> Any:
        is_inside = isinstance(tensor, Tensor) and tensor.producer in self.float_calls
        return value if is_inside else float_barrier(value)

    def _barrier_unless_kept(self, tensor: object, value: TensorLike) -> Any:
        """Put a float barrier before an argument of a call that is kept in float, unless another such call computes it.

        A value between two such calls has no range, so that the converter leaves both in float, and may fuse them.
        """
        producer = tensor.producer if isinstance(tensor, Tensor) else None
        return value if producer is not None and _is_kept_float(producer) else float_barrier(value)

    def _convolution(self, node: Node, layer: Layer, value: TensorLike) -> Any:
        """Emit a convolution or Dense, with the affine after it folded into its kernel and bias."""
        kernel, bias, quantizer, limits = self._folded(node, layer)
        if quantizer is not None:
            require_finite_folded(layer.name, kernel, bias)
        if bias is not None:
            limits = self._limits_for_bias(node, layer, kernel, bias, limits)
        spec = spec_of(layer)
        if spec.is_1d:
            kernel = kernel[np.newaxis]
        if spec.linear_part is None:
            raise TypeError(f"the row of {layer.name!r} in the operation table has no sums")
        result = spec.linear_part(layer, self._kernel(layer, kernel, quantizer, limits), value)
        return result if bias is None else add_bias(result, bias)

    def _folded(self, node: Node, layer: Layer) -> tuple[np.ndarray, Any, WeightQuantizer | None, Any]:
        """(kernel, bias, quantiser, limits) of a convolution, after folding the affine that follows it.

        The bias is None without a bias. The limits are None, except for a kernel whose clusters are kept: then they are
        the magnitude of the int8 level 127, a scalar or [channels].
        """
        kernel_name = kernels(layer)[0].attribute
        weights = dict(zip((kernel_name, "bias"), _constants(self.graph, layer), strict=False))
        kernel, bias = weights[kernel_name], weights.get("bias")
        quantizer, mask = _weight_quantizer(node.layer)
        if mask is not None:
            kernel = kernel * mask
        # A clustered kernel has one scale; folding scales the limits with the weights, so the int8 levels stay equal.
        limits = np.max(np.abs(kernel)) if quantizer is not None and quantizer.keep_clusters else None
        affine = self.folds.get(node)
        if affine is not None:
            scale, offset = affine_constants(inner_layer(affine.layer), self.graph)
            kernel = kernel * _along_outputs(kernels(layer)[0], kernel, scale)
            bias = offset if bias is None else bias * scale + offset
            limits = None if limits is None else limits * np.abs(scale)
        return kernel, bias, quantizer, limits

    def _largest_weight(self, node: Node) -> float:
        layer = inner_layer(node.layer)
        if role(layer) is Role.AFFINE:
            return float(np.max(np.abs(affine_constants(layer, self.graph)[0])))
        return float(np.max(np.abs(self._folded(node, layer)[0])))

    def _limits_for_bias(
        self, node: Node, layer: Layer, kernel: np.ndarray, bias: np.ndarray, limits: Array | None
    ) -> Any:
        """The limits of a kernel, enlarged where the bias does not fit int32.

        TFLite stores bias / (input scale * weight scale) as int32; a larger weight scale makes this number smaller.
        """
        axes, quantizer = kernels(layer)[0], _weight_quantizer(node.layer)[0]
        # The scales of a transposed convolution are set by the converter, which enlarges them itself.
        if quantizer is None or axes.swap_channels:
            return limits
        present = limits
        if present is None:
            channels = kernel.reshape(*kernel.shape[: kernel.ndim - axes.channels_axes], -1)
            with tf.init_scope():
                present = symmetric_limits(tf.constant(channels), per_channel=quantizer.per_channel).numpy()
        larger = self._enlarged_for_bias(node, bias, present)
        return limits if larger is None else larger

    def _enlarged_for_bias(self, node: Node, bias: np.ndarray, limits: Array) -> Any:
        """Limits, [channels] or a scalar, with which the bias fits int32; None if it fits with the given limits."""
        scale = self.ranges.scale(node.inputs()[0])
        if scale is None:
            return None
        smallest: Any = smallest_limits(bias, scale)
        smallest = smallest if np.ndim(limits) else np.max(smallest)
        return np.maximum(limits, smallest) if np.any(smallest > limits) else None

    def _affine(self, node: Node, layer: Layer, value: TensorLike) -> Any:
        """A free-standing affine as a 1x1 depthwise convolution, its input reshaped to [N, H, W, C] where needed.

        The result stays [N, H, W, C] until it is quantised: the converter exchanges a reshape and the sum or product
        that reads it, and then finds two ranges for one tensor.
        """
        scale, offset = affine_constants(layer, self.graph)
        batch, *sizes, channels = value.shape.as_list()
        scale, offset = np.broadcast_to(scale, (channels,)), np.broadcast_to(offset, (channels,))
        is_image = len(sizes) == 2  # noqa: PLR2004 - height and width
        image = value if is_image else tf.reshape(value, [batch, 1, int(np.prod(sizes, dtype=int)), channels])
        kernel = scale.reshape(1, 1, channels, 1)
        result = tf.nn.depthwise_conv2d(image, self._affine_kernel(node, kernel, offset), [1, 1, 1, 1], "VALID")
        return add_bias(result, offset)

    def _affine_kernel(self, node: Node, kernel: np.ndarray, offset: np.ndarray) -> Any:
        constant = tf.constant(kernel, name="kernel")
        if not self.range_of:
            return constant
        require_finite_folded(inner_layer(node.layer).name, kernel, offset)
        # Only in a QAT graph: with any fake-quant operation in it, the converter quantises nothing else by itself.
        with tf.init_scope():
            limits = symmetric_limits(tf.reshape(kernel, [1, -1]), per_channel=self.per_channel).numpy()
        limits = self._enlarged_for_bias(node, offset, limits)
        if limits is None:
            return WeightQuantizer(per_channel=self.per_channel, channels_axes=2).round(constant)
        within = tf.constant(limits, tf.float32)
        return tf.reshape(round_within(tf.reshape(constant, [1, 1, 1, -1]), within), kernel.shape)

    def _kernel(self, layer: Layer, kernel: np.ndarray, quantizer: WeightQuantizer | None, limits: Array | None) -> Any:
        """The kernel's constant, rounded by the quantiser; `limits` override the quantiser's own."""
        axes = kernels(layer)[0]
        # For a rounded kernel that several calls read, the converter derives the scale from the values themselves.
        known = quantizer is None or self.calls[layer] == 1
        if self.late is not None and known and axes.stored_axes is not None:
            within = limits
            if quantizer is not None and limits is None:
                with tf.init_scope():
                    within = symmetric_limits(kernel, per_channel=quantizer.per_channel).numpy()
            layout = KernelLayout(spec_of(layer).tflite[0], axes.stored_axes)
            if self.late.takes(kernel, within, layout):
                return self.late.constant(kernel, within, layout)
        if quantizer is None:
            return tf.constant(kernel, name="kernel")
        if limits is not None:
            # One channel axis, as TFLite stores a depthwise kernel: [1, height, width, channels * multiplier].
            flat = kernel.reshape(1, *kernel.shape[:-2], -1) if axes.channels_axes > 1 else kernel
            rounded = round_within(tf.constant(flat, name="kernel"), tf.constant(limits, tf.float32))
            return rounded if flat is kernel else tf.reshape(rounded, kernel.shape)
        if quantizer.swap_channels and quantizer.per_channel:
            # The converter transposes this kernel but not its per-channel ranges. From weights that are rounded already
            # it derives the same scales.
            with tf.init_scope():
                rounded = quantizer.round(tf.constant(kernel)).numpy()
            return tf.constant(rounded, name="kernel")
        return quantizer.round(tf.constant(kernel, name="kernel"))

    def _gather(self, node: Node, layer: Layer, indices: TensorLike) -> Any:
        (table,) = _constants(self.graph, layer)
        quantizer, mask = _weight_quantizer(node.layer)
        constant = tf.constant(table if mask is None else table * mask, name="kernel")
        table = constant if quantizer is None else quantizer.round(constant)
        return tf.gather(table, tf.cast(indices, tf.int32))

    def _quantize_output(self, node: Node, value: TensorLike) -> Any:
        if node.layer in self.range_of:
            low, high = with_unambiguous_zero(*self.range_of[node.layer])
            return tf.quantization.fake_quant_with_min_max_args(value, low, high, num_bits=8)
        quantizer = output_quantizer(node.layer)
        return quantizer(value, False, {}) if isinstance(quantizer, QuantizerWithoutVariables) else value


def _is_kept_float(node: Node) -> bool:
    """Whether the recipe's scope leaves a call in float that could be int8."""
    return bool(getattr(getattr(node.layer, "quantize_config", None), "keep_float", False))


def _along_outputs(kernel: Kernel, value: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A scale per output channel, reshaped to broadcast against the kernel."""
    if kernel.channels_axes > 1:
        return scale.reshape(value.shape[-kernel.channels_axes :])
    return scale[:, np.newaxis] if kernel.swap_channels else scale


def affine_constants(layer: Layer, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), each [channels], with which a BatchNormalization or Affine computes x * scale + offset."""
    weights = _constants(graph, layer)
    if isinstance(layer, Affine):
        return scale_and_offset(weights)
    gamma = weights.pop(0) if layer.scale else np.ones_like(weights[-1])
    beta = weights.pop(0) if layer.center else np.zeros_like(weights[-1])
    mean, variance = weights
    scale = gamma / np.sqrt(variance + layer.epsilon)
    return scale, beta - mean * scale


def _constant(graph: Graph, layer: Layer) -> Any:
    with tf.init_scope():
        (value,) = graph.weights_of(layer)
    return tf.constant(value)


def _constants(graph: Graph, layer: Layer) -> list[np.ndarray]:
    # init_scope leaves the function that is being traced, in which variables have no values.
    with tf.init_scope():
        return [np.asarray(weight, np.float32) for weight in graph.weights_of(layer)]


def _weight_quantizer(layer: Layer) -> tuple[WeightQuantizer | None, np.ndarray | None]:
    for _, quantizer, extra in private.weight_variables(layer):
        with tf.init_scope():
            return quantizer, extra["mask"].numpy() if "mask" in extra else None
    return None, None
