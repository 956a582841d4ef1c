"""Casts to the type that a tensor has already, which code for mixed precision contains."""

from __future__ import annotations

from typing import Any

from tfmot_ops.core.graph.ir import Node, tensors
from tfmot_ops.core.graph.rewrite import Rewriter


def redundant_cast(node: Node, out: Rewriter) -> Any:
    """`tf.cast` of a tensor to the type that the tensor has -> the tensor; TFLite would compute the cast in float."""
    del out
    if getattr(node.layer, "symbol", None) != "cast":
        return None
    operands = node.inputs()
    results = tensors(node.outputs)
    return operands[0] if [tensor.dtype for tensor in operands] == [tensor.dtype for tensor in results] else None
