"""Computes a QAT model's graph in float, with its quantisers off.

Called by calibration, by the choice of layers to keep in float, and by the sweep, which compares the result
with that of the model before QAT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Node
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.run import infer, run_graph
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import QuantizeLayer, QuantizeWrapper
from tfmot_ops.core.keras.types import Args, Kwargs, TensorLike


def outputs_without_fake_quant(model: keras.Model, inputs: Sequence[TensorLike]) -> Any:
    """Outputs of a QAT model with fake-quant disabled, in the model's output structure.

    Args:
        model: the QAT model, from `quantize`.
        inputs: one array [N, ...] for each input of the model.
    """
    # Eager, as Keras runs one batch: optimising a traced graph changes last bits, which a deep network amplifies.
    return run_graph(read_graph(model), [tf.convert_to_tensor(array) for array in inputs], call_unrounded)


def call_unrounded(node: Node, args: Args, kwargs: Kwargs) -> Any:
    """The result of a call of a QAT graph, in inference, without rounding its weights or its result."""
    layer = node.layer
    if isinstance(layer, QuantizeLayer):
        return args[0]
    if not isinstance(layer, QuantizeWrapper):
        return infer(layer, args, kwargs)
    variables = [variable for variable, _, _ in private.weight_variables(layer)]
    layer.quantize_config.set_quantize_weights(layer.layer, variables)
    return infer(layer.layer, args, kwargs)
