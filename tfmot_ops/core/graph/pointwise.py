"""Functions of one number: several TensorFlow calls that together compute one value from one value become one layer.

TFLite has few such functions in int8. Any of them can be a table instead, as an int8 value is one of 256: the table has
the result for each. A table is exact, and one table for `x * tanh(softplus(x))` rounds once, three calls three times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.of_weights import calls_of_weights
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import get_symbol_from_name
from tfmot_ops.errors import UnsupportedModelError

#: Functions that the rules of normalisation or the converter make int8 operations of, by Keras' names for them.
_INT8 = {
    *("math.add", "__operators__.add", "math.subtract", "math.multiply", "math.negative", "math.square", "math.abs"),
    *("math.maximum", "math.minimum", "math.squared_difference", "clip_by_value", "where", "math.exp"),
    *("nn.relu", "nn.relu6", "nn.leaky_relu", "math.sigmoid", "nn.sigmoid", "math.tanh", "nn.tanh"),
    *("identity", "stop_gradient", "zeros_like", "ones_like", "math.add_n"),
    *("math.greater", "math.greater_equal", "math.less", "math.less_equal", "__operators__.eq", "__operators__.ne"),
}
#: Functions that are int8 with their default arguments only.
_INT8_BY_DEFAULT = {"nn.silu", "nn.swish", "nn.gelu"}
_DIVISIONS = {"math.truediv", "math.divide"}
#: Functions whose value or slope diverges somewhere: a cluster with one of them is a table only if it is tame.
_DIVERGES = {
    *("math.log", "math.log1p", "math.sqrt", "math.rsqrt", "math.reciprocal", "math.reciprocal_no_nan", "math.pow"),
    *("math.divide_no_nan", "math.xdivy", "math.xlogy", "math.tan", "math.acos", "math.asin", "math.acosh"),
    *("math.atanh", "math.atan2", "math.lgamma", "math.digamma", "math.floormod", "compat.v1.floor_div"),
}
#: All functions that a `Pointwise` layer may call: each element of the result depends on the same element only.
FUNCTIONS_OF_ELEMENTS = frozenset(
    {
        *(_INT8 | _INT8_BY_DEFAULT | _DIVISIONS | _DIVERGES),
        *("math.erf", "math.erfc", "math.sin", "math.cos", "math.atan", "math.sinh", "math.cosh", "math.asinh"),
        *("math.sign", "math.floor", "math.ceil", "math.round", "math.rint", "math.expm1", "math.log_sigmoid"),
        *("math.softplus", "nn.softplus", "nn.softsign", "math.softsign", "nn.elu", "nn.selu", "cast"),
        *("math.multiply_no_nan", "math.equal", "math.not_equal", "compat.v1.where", "compat.v1.floor_div"),
        *("math.logical_and", "math.logical_or", "math.logical_not", "math.logical_xor", "math.is_nan"),
        *("math.is_finite", "math.is_inf", "math.bessel_i0", "math.bessel_i0e", "math.bessel_i1", "math.bessel_i1e"),
    }
)
#: Comparisons, logic, and casts of their results.
_TRUTH_VALUES = {
    *("math.greater", "math.greater_equal", "math.less", "math.less_equal", "__operators__.eq", "__operators__.ne"),
    *("math.equal", "math.not_equal", "math.logical_and", "math.logical_or", "math.logical_not", "math.logical_xor"),
    *("cast", "identity", "stop_gradient"),
}
#: Functions between truth values and the large number that they are multiplied by.
_OF_MASKS = {
    *("math.subtract", "math.add", "__operators__.add", "math.multiply", "math.negative", "__operators__.getitem"),
    *("reshape", "expand_dims", "compat.v1.transpose", "compat.v1.squeeze", "tile", "broadcast_to"),
}
#: A number that only masks are multiplied by.
_LARGE = 1e3
#: These are fused into the convolution before them, which a table could not be.
_FUSED = {"nn.relu", "nn.relu6"}
#: Largest magnitude of the inputs for which a function has to be finite, and its largest slope there, to count as tame.
_FAR, _STEEP, _POINTS = 64.0, 16.0, 8193
#: Arguments of a choice: condition, and two values.
_CHOICE = 3


@keras.saving.register_keras_serializable("tfmot_ops")
class Pointwise(keras.layers.Layer):
    """TensorFlow functions applied one after another, such that each output element depends on one input element.

    Args:
        steps: the calls. Each is a dict with the `function` by Keras' name (`math.add`), `args` and `kwargs`, in which
            `{"value": 0}` stands for the layer's input, `{"value": n}` for the result of the n-th step,
            `{"dtype": "int32"}` for a type and `{"number": 1.0, "dtype": "float32"}` for a scalar tensor.

    Raises:
        UnsupportedModelError: a function is not in `FUNCTIONS_OF_ELEMENTS`.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.steps = [dict(step) for step in steps]
        names = [step["function"] for step in self.steps]
        refused = [name for name in names if name not in FUNCTIONS_OF_ELEMENTS]
        if refused:
            raise UnsupportedModelError(
                f"layer {self.name!r} calls {refused[0]!r}",
                required="TensorFlow functions of single elements",
                received=", ".join(map(str, refused)),
                remedy="make the layer by core.normalize or core.quantize",
            )
        self._functions = [get_symbol_from_name(name) for name in names]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs of any shape to outputs of the same shape."""
        values: list[Any] = [inputs]
        for function, step in zip(self._functions, self.steps, strict=True):
            args = [_decoded(arg, values) for arg in step["args"]]
            kwargs = {name: _decoded(arg, values) for name, arg in step["kwargs"].items()}
            values.append(function(*args, **kwargs))
        return values[-1]

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Any:
        """Same as the input's."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "steps": self.steps}

    @property
    def diverges(self) -> bool:
        """Whether a step is a logarithm, a root or a division, which int8 must not compute by itself."""
        return any(_may_diverge(step["function"], step["args"]) for step in self.steps)


def _decoded(argument: Any, values: list[Any]) -> Any:
    if isinstance(argument, dict):
        if "value" in argument:
            return values[argument["value"]]
        dtype = tf.as_dtype(argument["dtype"])
        return tf.constant(argument["number"], dtype) if "number" in argument else dtype
    if isinstance(argument, list | tuple):
        return [_decoded(part, values) for part in argument]
    return argument


def _may_diverge(function: str, args: Sequence[object]) -> bool:
    if len(args) > 1 and function in {*_DIVISIONS, "math.pow"}:
        first, second = (_number(arg) for arg in args[:2])
        if function == "math.pow":
            is_polynomial = second is not None and second >= 1 and second == int(second)
            return not is_polynomial and not (first is not None and first > 0)
        return second is None
    return function in _DIVERGES


def _number(argument: Any) -> float | None:
    """The value of a constant argument of a recorded call or of a step of a `Pointwise` layer; None for a tensor."""
    if isinstance(argument, Tensor):
        return None
    if isinstance(argument, dict):
        return argument.get("number")
    return float(argument)


def fuse_pointwise(graph: Graph) -> Graph:
    """Replace calls that together compute a function of one number by one `Pointwise` layer.

    Only where a call has no int8 form of its own: TFLite fuses a ReLU or a scale into a convolution, which is better
    than a table. Calls that other calls read too stay beside the new layer.

    Args:
        graph: with the custom layers opened, before the rules of normalisation.
    """
    clusters = _Clusters(graph)
    readers = graph.readers()
    results = set(tensors(graph.outputs))
    constant = calls_of_weights(graph)
    fused: dict[Node, Node] = {}
    for node in graph.nodes:
        # The rules of normalisation look for masks, and for what they are made of.
        if node in constant or _is_mask(node, clusters, readers):
            continue
        if node not in clusters.sources or not node.output().is_float:
            continue
        is_read = any(clusters.source_of(reader) is not clusters.sources[node] for reader in readers[node.output()])
        if (is_read or node.output() in results) and clusters.needs_table(node):
            fused[node] = clusters.fused(node)
    # Only now, as several new layers may contain one call.
    for call in fused.values():
        call.output().producer = call
    graph.nodes = [fused.get(node, node) for node in graph.nodes]
    return graph.without_dead_calls()


def _is_mask(node: Node, clusters: _Clusters, readers: Mapping[Tensor, list[Node]]) -> bool:
    """Whether a call gives truth values as floats, which are multiplied by a large number, as in an attention mask."""
    calls = clusters.calls(node) if node in clusters.sources else []
    if not calls or any(call.layer.symbol not in _TRUTH_VALUES | _OF_MASKS for call in calls):
        return False
    if not any(call.layer.symbol in _TRUTH_VALUES for call in calls):
        return False
    waiting = [call for call in calls if call.layer.symbol in _OF_MASKS] + readers.get(node.output(), [])
    while waiting:
        reader = waiting.pop()
        if getattr(reader.layer, "symbol", None) in _OF_MASKS:
            leaves = tf.nest.flatten((reader.args, reader.kwargs))
            if any(_is_large(leaf) for leaf in leaves):
                return True
            waiting += [further for tensor in tensors(reader.outputs) for further in readers.get(tensor, [])]
    return False


def _is_large(leaf: Any) -> bool:
    """Whether an argument is a large number; `10000.0 * x` records the number as a scalar tensor."""
    if leaf is None or isinstance(leaf, Tensor | str | tf.DType) or not _is_plain(leaf):
        return False
    return bool(abs(float(leaf)) >= _LARGE)


def pointwise_of(function: Any, name: str) -> Pointwise | None:
    """A layer that calls what a user's function calls, so that a saved model does not need the function.

    Args:
        function: takes a tensor.
        name: of the layer.

    Returns:
        None where Keras cannot record the function's calls on a symbolic tensor, as with a gradient of its own, where
        they are no functions of single elements, or where one may diverge.
    """
    inputs = keras.Input((None,), dtype="float32")
    try:
        graph = read_graph(keras.Model(inputs, function(inputs)))
    except Exception:  # noqa: BLE001 - the user's function may raise anything on a symbolic tensor
        return None
    result = graph.outputs.producer if isinstance(graph.outputs, Tensor) else None
    clusters = _Clusters(graph)
    if result is None or clusters.source_of(result) is not graph.inputs()[0] or not result.output().is_float:
        return None
    layer = Pointwise(clusters.steps(result), name=name)
    return None if layer.diverges else layer


class _Clusters:
    """The calls of functions of single elements, with the one tensor that each depends on."""

    def __init__(self, graph: Graph) -> None:
        #: Call -> the tensor that its result is a function of, element by element.
        self.sources: dict[Node, Tensor] = {}
        for node in graph.nodes:
            source = self._source(node) if _is_of_elements(node) else None
            if source is not None and source.dtype == "float32":
                self.sources[node] = source

    def source_of(self, node: Node) -> Tensor | None:
        """The tensor that a call's result is a function of; None for any other call."""
        return self.sources.get(node)

    def _origin(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.producer is None else self.sources.get(tensor.producer, tensor)

    def _source(self, node: Node) -> Tensor | None:
        found = {self._origin(tensor) for tensor in node.inputs()}
        if len(found) != 1:
            return None
        (source,) = found
        is_direct = source in node.inputs()
        return None if is_direct and node.layer.symbol in _FUSED and source.producer is not None else source

    def calls(self, node: Node) -> list[Node]:
        """The calls that a call's result is computed by from its source, in order, the call itself last."""
        found: dict[Node, None] = {}

        def visit(call: Node) -> None:
            for tensor in call.inputs():
                if tensor is not self.sources[node] and tensor.producer is not None and tensor.producer not in found:
                    visit(tensor.producer)
            found[call] = None

        visit(node)
        return list(found)

    def needs_table(self, node: Node) -> bool:
        """Whether a call's result needs a function that has no int8 form, or an exponential that is not the last call.

        An exponential grows so fast that its int8 values serve further calls badly: in `where(x > 0, x, exp(x) - 1)`
        they had 24 dB.
        """
        calls = self.calls(node)
        needs = any(not _has_int8_form(call) for call in calls)
        inner_exponential = any(call.layer.symbol == "math.exp" for call in calls[:-1])
        if not (needs or inner_exponential):
            return False
        diverges = any(_may_diverge(call.layer.symbol, call.args) for call in calls)
        return not diverges or _is_tame(self.steps(node))

    def fused(self, node: Node) -> Node:
        """One call that computes what a call and those before it compute from its source."""
        layer = Pointwise(self.steps(node), name=node.layer.name)
        return Node(layer, node.path, (self.sources[node],), {}, node.outputs, node.origin)

    def steps(self, node: Node) -> list[dict[str, Any]]:
        """What a call and those before it compute from its source, as `Pointwise` takes it."""
        places: dict[Tensor, int] = {self.sources[node]: 0}
        steps = []
        for call in self.calls(node):
            args = [_encoded(arg, places) for arg in call.args]
            kwargs = {name: _encoded(arg, places) for name, arg in call.kwargs.items() if name != "name"}
            steps.append({"function": call.layer.symbol, "args": args, "kwargs": kwargs})
            places[call.output()] = len(steps)
        return steps


def _is_of_elements(node: Node) -> bool:
    """Whether a call applies a function of single elements to tensors of one shape and to plain numbers."""
    if getattr(node.layer, "symbol", None) not in FUNCTIONS_OF_ELEMENTS or not isinstance(node.outputs, Tensor):
        return False
    if node.layer.symbol in {"where", "compat.v1.where"} and len(node.args) + len(node.kwargs) < _CHOICE:
        return False  # the indices of what is true
    if node.layer.symbol in {*_DIVISIONS, "math.pow"} and {"x", "y"} & node.kwargs.keys():
        return False  # operands by name; `_may_diverge` reads them by position
    shape = node.output().shape
    if not node.inputs() or any(tensor.shape != shape for tensor in node.inputs()):
        return False
    return all(_is_plain(leaf) for leaf in tf.nest.flatten((node.args, node.kwargs)))


def _is_plain(leaf: Any) -> bool:
    if leaf is None or isinstance(leaf, Tensor | bool | int | float | str | tf.DType | np.number | np.bool_):
        return True
    # A variable is trained, so that no table of today's values can replace it.
    return not isinstance(leaf, tf.Variable) and tf.is_tensor(leaf) and hasattr(leaf, "numpy") and leaf.shape.rank == 0


def _encoded(argument: Any, places: Mapping[Tensor, int]) -> Any:
    """An argument as the JSON value that `Pointwise` takes."""
    if isinstance(argument, list | tuple):
        return [_encoded(part, places) for part in argument]
    if isinstance(argument, Tensor):
        return {"value": places[argument]}
    if isinstance(argument, tf.DType):
        return {"dtype": argument.name}
    if tf.is_tensor(argument) or isinstance(argument, np.generic):
        array = np.asarray(argument)
        return {"number": array.item(), "dtype": array.dtype.name}
    return argument


def _has_int8_form(node: Node) -> bool:
    symbol = node.layer.symbol
    if symbol in _DIVISIONS:
        return len(node.args) > 1 and not tensors(node.args[1])
    if symbol == "cast" and [tensor.dtype for tensor in node.inputs()] == [node.output().dtype]:
        return True  # a rule of normalisation leaves it out
    constants = [leaf for leaf in tf.nest.flatten((node.args[1:], node.kwargs)) if leaf is not None]
    return symbol in _INT8 or (symbol in _INT8_BY_DEFAULT and not constants)


def _is_tame(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a function is finite and not steep for all inputs of the usual magnitudes.

    Example: `x / (1 + |x|)` is; `log(x + 1e-5)` is not: close to 0 the steps of int8 would be seen in its result.
    """
    grid = np.linspace(-_FAR, _FAR, _POINTS, dtype=np.float32)
    with tf.init_scope():
        values = np.asarray(Pointwise(steps)(tf.constant(grid)), np.float64)
    return bool(np.isfinite(values).all() and (np.abs(np.diff(values)) <= _STEEP * np.diff(grid)).all())
