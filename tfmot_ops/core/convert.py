"""The TFLite converter for a function, without the copies it otherwise makes of a graph of constants."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import tensorflow as tf
from tensorflow.lite.python.lite import TFLiteFrozenGraphConverterV2
from tensorflow.python.framework.func_graph import dismantle_func_graph, func_graph_from_py_func


def converter_of(
    function: Callable[..., Any],
    signature: list[tf.TensorSpec],
    finish: Callable[[bytes], bytes] = lambda data: data,
) -> Any:
    """A TFLite converter for a function of tensors; converts once.

    Args:
        function: called once to trace it, twice where it reads a variable; gives a list of tensors.
        signature: of its arguments.
        finish: what is done to the file before it is calibrated and quantised.
    """
    converter = _converter_of(function, signature)
    then = converter._optimize_tflite_model  # noqa: SLF001 - the one place between the two
    converter._optimize_tflite_model = lambda data, *args, **kwargs: then(finish(data), *args, **kwargs)  # noqa: SLF001
    return converter


def _converter_of(function: Callable[..., Any], signature: list[tf.TensorSpec]) -> Any:
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
    the converter folds too: some ten copies of all weights, and more than half of the time of a conversion. Of the
    three that are left in Python, graph, definition and what the converter reads, only the last is held meanwhile.
    """

    def __init__(self, graph: Any) -> None:
        self._definition: Any = _Definition(graph.as_graph_def())
        # The converter asks a tensor for its name, type and shape only.
        self._outputs = [SimpleNamespace(name=tensor.name) for tensor in graph.outputs]
        with tf.Graph().as_default():
            self._inputs = [
                tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name=tensor.op.name) for tensor in graph.inputs
            ]
        dismantle_func_graph(graph)
        # Of the function itself it wants the stack trace of each operation, or nothing.
        super().__init__([SimpleNamespace(graph=None)])
        self.experimental_lower_to_saved_model = False

    def _freeze_concrete_function(self) -> tuple[Any, Any, Any, Any]:
        """(definition, inputs, outputs, frozen function), as the base class wants them."""
        gc.collect()  # the graph and its operations point at each other
        return self._definition, self._inputs, self._outputs, None

    def _optimize_tf_model(self, definition: Any, *_: Any) -> Any:
        """The graph as it is."""
        return definition


class _Definition:
    """A GraphDef that ends when it is serialised: the base class keeps it until the conversion is over."""

    def __init__(self, definition: Any) -> None:
        self._definition = definition
        # What the base class looks for: whether an operation is one of QAT, and its origin. A copy, as a part of a
        # protobuf keeps the whole.
        self.node = [_outline(node) for node in definition.node]
        functions = [[_outline(node) for node in each.node_def] for each in definition.library.function]
        self.library = SimpleNamespace(function=[SimpleNamespace(node_def=nodes) for nodes in functions])

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """The definition as the converter reads it."""
        data: bytes = self._definition.SerializeToString()
        del self._definition
        return data


def _outline(node: Any) -> SimpleNamespace:
    origin = SimpleNamespace(original_node_names=(), original_func_names=())
    return SimpleNamespace(op=node.op, name=node.name, experimental_debug_info=origin)
