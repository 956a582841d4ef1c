"""Constants that an operation puts into its output, such as the padding value of `tf.pad`.

In TFLite the input and the output of a padding or a concatenation share one range. A constant outside the range of
the input widens it: where values from 0 to 1 are padded with -1000, they share one or two of the 256 int8 levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.operations import Constants
from tfmot_ops.core.graph.roles import spec_of
from tfmot_ops.core.graph.run import Compute, run_graph
from tfmot_ops.core.keras.types import Args, Kwargs, TensorLike
from tfmot_ops.core.keras.values import value_of
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.errors import UnsupportedModelError

#: Smallest number of levels of the shared range that must remain for the input's own values. Not measured: 8 levels
#: are 3 bits.
_FEWEST_LEVELS = 8


def output_constants(node: Node) -> list[np.ndarray]:
    """The constants that a call puts into its output; without zeros, which every range contains."""
    found: Any = []
    match spec_of(inner_layer(node.layer)).constants:
        case Constants.PADDING:
            found = pad_constant(node)
        case Constants.LIST:
            found = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        case Constants.OPERANDS:
            found = (node.args, {key: value for key, value in node.kwargs.items() if key != "name"})
    arrays = [value_of(leaf) for leaf in tf.nest.flatten(found) if not isinstance(leaf, Tensor | str | type(None))]
    return [array for array in arrays if array.dtype != bool and np.any(array)]


def pad_constant(node: Node) -> Any:
    """The padding value of a call of `tf.pad`; 0 for the modes REFLECT and SYMMETRIC, which repeat the tensor."""
    given = dict(zip(("tensor", "paddings", "mode", "name", "constant_values"), node.args, strict=False)) | node.kwargs
    return given.get("constant_values", 0) if str(given.get("mode", "CONSTANT")).upper() == "CONSTANT" else 0


def refuse_outlier_constants(
    graph: Graph,
    batches: Iterable[list[np.ndarray]],
    compute: Compute,
    is_rounded: Callable[[Node], bool],
    *,
    bits: int = 8,
) -> None:
    """Refuse a constant so large that the values beside it get fewer than 8 integer levels.

    Input and output of such an operation (tf.pad, tf.where, a concatenation) have one range in TFLite, which has to
    contain the constant. The levels that are left for the input are 2**bits * (width of the input's own range) / (width
    of the shared range).

    Args:
        graph: normalised or quantised.
        batches: calibration data; each batch has one array [N, ...] for each graph input, in order.
        compute: `(call, args, kwargs) -> result` without rounding.
        is_rounded: whether a call, or a call that reads its result, is quantised.
        bits: bits of the activations, 8 or 16.

    Raises:
        UnsupportedModelError: names the call and its constant.
    """
    widths = {node: np.zeros(4) for node in graph.nodes if output_constants(node) and is_rounded(node)}
    if not widths:
        return

    def observe(node: Node, args: Args, kwargs: Kwargs) -> Any:
        result = compute(node, args, kwargs)
        if node in widths:
            leaves = zip(tf.nest.flatten((node.args, node.kwargs)), tf.nest.flatten((args, kwargs)), strict=True)
            read = [value for leaf, value in leaves if isinstance(leaf, Tensor) and leaf.is_float]
            seen = widths[node]
            widths[node] = np.array([*_extremes(read, *seen[:2]), *_extremes(tf.nest.flatten(result), *seen[2:])])
        return result

    for batch in batches:
        run_graph(graph, [tf.convert_to_tensor(part) for part in batch], observe)
    for node, (low, high, lowest, highest) in widths.items():
        levels = 2**bits * (high - low) / (highest - lowest) if highest > lowest else np.inf
        if high > low and not levels >= _FEWEST_LEVELS:
            raise _outlier_constant_error(node, (low, high), (lowest, highest))


def _extremes(values: Sequence[TensorLike], low: float, high: float) -> tuple[float, float]:
    """(minimum, maximum) of the values and of the extremes `low` and `high` found so far."""
    arrays = [np.asarray(value) for value in values]
    return min([low, *(float(array.min()) for array in arrays)]), max([high, *(float(array.max()) for array in arrays)])


def refuse_pads_beyond_float16(graph: Graph) -> None:
    """Refuse a padding value beyond float16 (65504): it would become infinite in a float16 file.

    Raises:
        UnsupportedModelError: names the call and its constant.
    """
    for node in graph.nodes:
        is_pad = spec_of(inner_layer(node.layer)).constants is Constants.PADDING
        if is_pad and any(not np.all(np.abs(array) <= np.finfo(np.float16).max) for array in output_constants(node)):
            raise _outlier_constant_error(node, None, None)


def _outlier_constant_error(
    node: Node, values: tuple[float, float] | None, result: tuple[float, float] | None
) -> UnsupportedModelError:
    numbers = ", ".join(f"{number:g}" for array in output_constants(node) for number in {array.min(), array.max()})
    kind = getattr(inner_layer(node.layer), "symbol", type(inner_layer(node.layer)).__name__)
    of_values = f"{values[0]:.3g} to {values[1]:.3g}" if values else "of an activation"
    more = f", and the range of both {result[0]:.3g} to {result[1]:.3g}" if result else ""
    return UnsupportedModelError(
        f"layer {node.path!r} ({kind}): its constant {numbers} is too far from the values beside it",
        required=f"a number that float16 holds, and that leaves the values {_FEWEST_LEVELS} integer levels or more",
        received=f"values {of_values}{more}",
        remedy="use a constant next to the values (for a maximum: their lowest), or exclude the layer and those that "
        "read it in the recipe's quantization.scope",
    )


def extended_to_readers(graph: Graph, is_rounded: Callable[[Node], bool]) -> Callable[[Node], bool]:
    """Extend a predicate on calls: true for a call if it holds for the call or for a call that reads its result."""
    readers = graph.readers()
    return lambda node: (
        is_rounded(node)
        or any(is_rounded(reader) for tensor in tensors(node.outputs) for reader in readers.get(tensor, []))
    )
