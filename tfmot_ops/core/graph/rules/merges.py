"""Sums, products and averages of many tensors as chains of two-tensor operations, the only ones TFLite has in int8.

Example: Add([a, b, c]) -> Add([Add([a, b]), c]); the intermediate sum a + b gets a range of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer

_L = keras.layers
#: Layers that become a chain. Maximum, Minimum and Concatenate do not: their tensors share one range in any case.
_CHAINED = (_L.Add, _L.Multiply)
_SUMS = {"math.add_n", "math.accumulate_n"}


def merge_of_many(node: Node, out: Rewriter) -> Any:
    """Add or Multiply of three or more tensors -> a chain in Keras' order, so that float results are bit-identical."""
    parts = _parts(node)
    if type(node.layer) not in _CHAINED or len(parts) <= 2:  # noqa: PLR2004 - a pair
        return None
    return _chain(node, out, parts, node.layer, node.path)


def average(node: Node, out: Rewriter) -> Any:
    """Average([a, b, c]) -> ((a + b) + c) / 3: TFLite has no average of several tensors."""
    parts = _parts(node)
    if type(node.layer) is not _L.Average or not parts:
        return None
    last = out.shared_layer(node.layer, "sum", lambda: _L.Add(name=f"{node.layer.name}_sum"))
    total = _chain(node, out, parts, last, f"{node.path}_sum")
    return out.affine(node.path, total, 1.0, 0.0, len(parts))


def sum_function(node: Node, out: Rewriter) -> Any:
    """`tf.add_n`, `tf.math.accumulate_n` -> a chain of Adds."""
    if getattr(node.layer, "symbol", None) not in _SUMS:
        return None
    parts = _parts(node)
    if not parts or not node.output().is_float:
        return None
    if len(parts) == 1:
        return parts[0]
    return _chain(node, out, parts, _L.Add(name=node.layer.name), node.path)


def _parts(node: Node) -> list[Any]:
    """The operands: tensors first, then constants, so that the first call of a chain reads a tensor."""
    parts = node.args[0] if node.args else next(iter(node.kwargs.values()))
    return sorted(parts, key=lambda part: not isinstance(part, Tensor)) if isinstance(parts, list | tuple) else []


def _chain(node: Node, out: Rewriter, parts: Sequence[Tensor | npt.ArrayLike], last: Layer, path: str) -> Any:
    """Emit ((a + b) + c) + ... with layers of the class of `last`; the last call is of `last`, at the path `path`."""
    name = path.rsplit("/", 1)[-1]
    merge: Callable[..., Any] = type(last)
    result, *others = parts
    for count, part in enumerate(others, 2):
        if count == len(parts):
            return out.call(last, path, [result, part], shape=node.output().shape)
        layer = out.shared_layer(node.layer, f"of_{count}", partial(merge, name=f"{name}_of_{count}"))
        shape = merge().compute_output_shape([_shape(result), _shape(part)])
        result = out.call(layer, f"{path}_of_{count}", [result, part], shape=shape)
    return result


def _shape(part: Tensor | npt.ArrayLike) -> tuple[int | None, ...]:
    return part.shape if isinstance(part, Tensor) else tuple(np.shape(part))
