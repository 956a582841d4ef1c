"""The TFLite converter for a function, without the copies it otherwise makes of a graph of constants."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import tensorflow as tf
from tensorflow.lite.python.lite import TFLiteFrozenGraphConverterV2
from tensorflow.python.framework.func_graph import func_graph_from_py_func


def converter_of(function: Callable[..., Any], signature: list[tf.TensorSpec]) -> Any:
    """A TFLite converter for a function of tensors.

    Args:
        function: called once to trace it, twice where it reads a variable; gives a list of tensors.
        signature: of its arguments.
    """
    graph = func_graph_from_py_func("inference", function, signature, {})
    if not graph.captures:
        return _ConstantsConverter(graph)
    # A layer that is called as it is (LSTM, PReLU) reads its variables, which have to be turned into constants.
    traced = tf.function(function, input_signature=signature, autograph=False).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
    converter.experimental_lower_to_saved_model = False
    return converter


class _ConstantsConverter(TFLiteFrozenGraphConverterV2):
    """Converts a graph that reads no variable as it is.

    TensorFlow's own class first turns variables into constants, though there are none, and lets Grappler fold what
    the converter folds too: some ten copies of all weights, and more than half of the time of a conversion.
    """

    def __init__(self, graph: Any) -> None:
        super().__init__([SimpleNamespace(graph=graph)])
        self.experimental_lower_to_saved_model = False

    def _freeze_concrete_function(self) -> tuple[Any, Any, Any, Any]:
        """(GraphDef, inputs, outputs, frozen function), as the base class wants them."""
        graph = self._funcs[0].graph
        return graph.as_graph_def(), graph.inputs, graph.outputs, None

    def _optimize_tf_model(self, graph_def: Any, *_: Any) -> Any:
        """The graph as it is."""
        return graph_def
