"""Sets the activation ranges of a QAT model from calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tfmot_ops.contract import Quantization
from tfmot_ops.core.graph.ir import Graph, Node
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.run import run_graph
from tfmot_ops.core.graph.samples import Calibration, calibration_batches
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Args, Array, Kwargs, Layer, TensorLike
from tfmot_ops.core.quantization.observers import Extremes, Observer, observer_of
from tfmot_ops.core.quantization.ranges import range_variables, tied_ranges
from tfmot_ops.core.quantization.scales import Range
from tfmot_ops.core.quantization.scheme import output_quantizer
from tfmot_ops.core.quantization.without_rounding import call_unrounded
from tfmot_ops.errors import CalibrationError

#: The smallest width of a calibrated range. In tensors with values around 1, float32 cannot resolve int8 levels of a
#: narrower range (1e-6 / 255).
_SMALLEST_WIDTH = 1e-6

#: (call, its result) -> None: reads the values of the calls whose output has a range.
_Reader: TypeAlias = Callable[[Node, Any], None]


def calibrate(
    model: keras.Model, calibration: Calibration, samples: int, quantization: Quantization | None = None
) -> None:
    """Set the activation ranges of a QAT model, in place, from calibration samples.

    The quantisers are off during calibration. Ranges that TFLite ties are set to their union, and 0 is in every range.

    Args:
        model: the QAT model, from `quantize`.
        calibration: see `quantize`.
        samples: most samples to read.
        quantization: its `ranges` says how a range is found; None takes the default method.

    Raises:
        CalibrationError: there is no sample, the shapes do not fit, or a layer's result is NaN or infinite.
    """
    graph = read_graph(model)
    observed = [node for node in graph.nodes if range_variables(node.layer) is not None]
    observer = observer_of(quantization or Quantization())
    batches = _at_least_one(calibration_batches(graph, calibration, samples))
    found = _extremes(graph, observed, batches) if observer is Extremes else _chosen(graph, observed, batches, observer)
    for node in observed:
        _require_finite(node, *found[node.layer])
        _assign(node, *found[node.layer])
    tied = tied_ranges(graph)
    for node in observed:
        low, high = tied[node.layer]
        _assign(node, low, max(high, low + _SMALLEST_WIDTH))


def _at_least_one(batches: Iterable[list[Array]]) -> Iterator[list[Array]]:
    found = False
    for batch in batches:
        found = True
        yield batch
    if not found:
        raise CalibrationError(
            "no calibration data", required="at least one sample", received="none", remedy="give calibration samples"
        )


def _extremes(graph: Graph, observed: list[Node], batches: Iterable[list[Array]]) -> dict[Layer, Range]:
    """Layer -> (low, high) over all its calls and all batches."""

    def extremes(inputs: Sequence[TensorLike]) -> Any:
        seen = {}

        def read(node: Node, values: Any) -> None:
            seen[node] = (tf.reduce_min(values), tf.reduce_max(values))

        _run(graph, observed, inputs, read)
        return [seen[node] for node in observed]

    traced = tf.function(extremes, autograph=False)
    found: dict[Layer, Range] = {}
    for count, batch in enumerate(batches):
        # Tracing costs more than one batch run eagerly, so the function is traced from the second batch on.
        seen = np.asarray((traced if count else extremes)([tf.convert_to_tensor(part) for part in batch]), np.float32)
        for node, (lowest, highest) in zip(observed, seen.tolist(), strict=True):
            # A shared layer has one range for all its calls.
            low, high = found.get(node.layer, (0.0, 0.0))
            found[node.layer] = float(np.minimum(low, lowest)), float(np.maximum(high, highest))
    return found


def _chosen(
    graph: Graph, observed: list[Node], batches: Iterable[list[Array]], observer: Callable[[], Observer]
) -> dict[Layer, Range]:
    """Layer -> the range that an observer chooses from the values of all its calls."""
    observers: dict[Layer, Observer] = {}

    def read(node: Node, values: Any) -> None:
        observers.setdefault(node.layer, observer()).add(np.asarray(values, np.float32))

    for batch in batches:
        _run(graph, observed, [tf.convert_to_tensor(part) for part in batch], read)
        for each in observers.values():
            each.end_batch()
    return {layer: each.range() for layer, each in observers.items()}


def _run(graph: Graph, observed: list[Node], inputs: Sequence[TensorLike], read: _Reader) -> None:
    """Run a batch without rounding, and hand the values of the `observed` calls to `read`."""
    has_range = set(observed)

    def compute(node: Node, args: Args, kwargs: Kwargs) -> Any:
        result = call_unrounded(node, args, kwargs)
        if node in has_range:
            read(node, output_quantizer(node.layer).observed(result))
        return result

    run_graph(graph, inputs, compute)


def _require_finite(node: Node, low: float, high: float) -> None:
    if not np.isfinite([low, high]).all():
        raise CalibrationError(
            f"layer {node.path!r} has no finite range",
            required="finite results of every layer that becomes int8, for all calibration samples",
            received=f"values from {low} to {high}",
            remedy="look for a division by 0, a logarithm of 0, an overflow or an infinite constant before this "
            "layer, or keep it in float by the recipe's quantization.scope",
        )


def _assign(node: Node, low: float, high: float) -> None:
    variables = range_variables(node.layer)
    if variables is not None:
        variables[0].assign(low)
        variables[1].assign(high)
