"""The TFLite converter for a function, without the copies it otherwise makes of a graph of constants."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.private import (
    TFLiteFrozenGraphConverterV2,
    backend,
    dismantle_func_graph,
    func_graph_from_py_func,
    mlir_quantize,
)
from tfmot_ops.core.keras.types import ConverterTypes, Function, TensorLike
from tfmot_ops.errors import UnsupportedModelError

_LOOPS = {"While", "StatelessWhile"}
#: One thread at a time takes the place of Keras' loop.
_PATCHING = RLock()


def converter_of(
    function: Function,
    signature: list[tf.TensorSpec],
    finish: Callable[[bytes], bytes] = lambda data: data,
    *,
    calibrated: bool = False,
) -> Any:
    """A TFLite converter for a function of tensors; converts once.

    Args:
        function: called once to trace it, twice where it reads a variable; gives a list of tensors.
        signature: of its arguments.
        finish: what is done to the file before it is calibrated and quantised.
        calibrated: whether the converter will run the file to find ranges.

    Raises:
        UnsupportedModelError: the file is to be calibrated, and holds a loop that is none of Keras' own.
    """
    converter = _converter_of(_unrolled(function) if calibrated else function, signature, calibrated=calibrated)
    private.finish_before_quantizing(converter, finish)
    return converter


def change_calibrated(
    converter: tf.lite.TFLiteConverter,
    change: Callable[[bytes, list[str]], bytes],
    floats_in: Callable[[bytes], list[str]] | None = None,
) -> None:
    """Have a say between a converter's calibration and what it quantises with the ranges found.

    Args:
        converter: what `converter_of` made.
        change: gives for the float file with the ranges, and what stays in float of it, another one.
        floats_in: gives for the float file the names of the tensors whose operations stay in float, which int8 alone
            can have; None lets it quantise all it can.
    """

    def quantize_changed(data: bytes, found: bytes, types: ConverterTypes) -> bytes:
        kept = [] if floats_in is None else floats_in(data)
        calibrated = change(found, kept)
        in_type, out_type, activations, biases, allow_float, variables, debug = types
        if activations is tf.int16 and floats_in is None:
            # The way of TensorFlow's own class, which knows of int16 only together with the calibration.
            numbers = [np.dtype(each.as_numpy_dtype).num for each in (in_type, out_type, activations, biases)]
            result: bytes = private.int16_quantizer(calibrated).QuantizeModel(
                *numbers[:2], allow_float, *numbers[2:], False, False
            )
            return result
        return bytes(
            mlir_quantize(
                calibrated,
                input_data_type=in_type,
                output_data_type=out_type,
                denylisted_nodes=None if floats_in is None else kept,
                enable_variable_quantization=variables,
                debug_options_str=debug.SerializeToString(),
            )
        )

    private.quantize_after_calibration(converter, quantize_changed)


@contextmanager
def _without_loops() -> Iterator[None]:
    """Keras' recurrent layers that are traced in this context run step after step, where the steps are known.

    They put the steps in reverse by an operation whose input and output have one range in TFLite: the converter of
    TensorFlow 2.21 ties those of GATHER, and not those of REVERSE_V2 (13 dB).
    """
    rnn, reverse = backend.rnn, backend.reverse

    def gathered(value: TensorLike, axes: object) -> Any:
        if not isinstance(axes, int) or value.shape[axes] is None:
            return reverse(value, axes)
        return tf.gather(value, tf.range(value.shape[axes] - 1, -1, -1), axis=axes)

    def unrolled(step: Function, inputs: object, *args: object, **kwargs: Any) -> Any:
        axis = 0 if kwargs.get("time_major") else 1
        if not tf.nest.flatten(inputs)[0].shape[axis]:
            return rnn(step, inputs, *args, **kwargs)
        mask = kwargs.get("mask")
        if kwargs.get("go_backwards") and mask is not None:
            # Step after step, Keras would zero the masked outputs by the mask as it was before it turned it round.
            inputs = tf.nest.map_structure(lambda value: gathered(value, axis), inputs)
            kwargs |= {"mask": gathered(mask, axis), "go_backwards": False}
        return rnn(step, inputs, *args, **kwargs | {"unroll": True})

    with _PATCHING:
        backend.rnn, backend.reverse = unrolled, gathered
        try:
            yield
        finally:
            backend.rnn, backend.reverse = rnn, reverse


def _unrolled(function: Function) -> Callable[..., Any]:
    def without_loops(*inputs: object) -> Any:
        with _without_loops():
            return function(*inputs)

    return without_loops


def _refuse_loops(graph: tf.Graph) -> None:
    """Refuse a graph with a loop: in TensorFlow 2.21 calibrating one ends the process (SIGSEGV)."""
    bodies = private.function_bodies(graph)
    looping = {body.signature.name for body in bodies if any(node.op in _LOOPS for node in body.node_def)}
    for op in graph.get_operations():
        called = op.get_attr("f").name if "PartitionedCall" in op.type else None
        if op.type in _LOOPS or called in looping:
            raise UnsupportedModelError(
                f"operation {op.name!r} is a loop",
                required="a graph without loops, as the TFLite converter's calibration crashes on them",
                received=op.type,
                remedy="use a recipe for QAT or with float32 activations (wi8_afp32), or write the steps out",
            )


def _converter_of(function: Function, signature: list[tf.TensorSpec], *, calibrated: bool) -> Any:
    graph = func_graph_from_py_func("inference", function, signature, {})
    if calibrated:
        _refuse_loops(graph)
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

    def __init__(self, graph: tf.Graph) -> None:
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

    def _optimize_tf_model(self, definition: tf.compat.v1.GraphDef, *_: object) -> Any:
        """The graph as it is."""
        return definition


class _Definition:
    """A GraphDef that ends when it is serialised: the base class keeps it until the conversion is over."""

    def __init__(self, definition: tf.compat.v1.GraphDef) -> None:
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


def _outline(node: tf.compat.v1.NodeDef) -> SimpleNamespace:
    origin = SimpleNamespace(original_node_names=(), original_func_names=())
    return SimpleNamespace(op=node.op, name=node.name, experimental_debug_info=origin)
