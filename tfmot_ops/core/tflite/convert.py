"""A TFLite converter for a TensorFlow function, with fewer copies of the weights than TensorFlow's own needs."""

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
#: Held while Keras' module-level functions `rnn` and `reverse` are replaced, which affects all threads.
_PATCHING = RLock()


def make_converter(
    function: Function,
    signature: list[tf.TensorSpec],
    finish: Callable[[bytes], bytes] = lambda data: data,
    *,
    calibrated: bool = False,
    per_channel: bool = True,
) -> Any:
    """A TFLite converter for a function of tensors; its `convert` can be called once.

    Args:
        function: takes tensors and returns a list of tensors; it is traced once, or twice if it reads a variable.
        signature: shape and dtype of each argument.
        finish: (float file) -> float file; called before calibration and quantisation.
        calibrated: whether the converter will run the file on calibration data to find ranges.
        per_channel: whether int8 kernels get one scale for each output channel, or one for the kernel.

    Raises:
        UnsupportedModelError: `calibrated`, and the function contains a loop other than Keras' recurrent layers.
    """
    converter = _converter_for(_unrolled(function) if calibrated else function, signature, calibrated=calibrated)
    private.prepare_converter(converter, finish, per_channel)
    return converter


def insert_after_calibration(
    converter: tf.lite.TFLiteConverter,
    change: Callable[[bytes, list[str]], bytes],
    find_float_names: Callable[[bytes], list[str]] | None = None,
    *,
    per_channel: bool = True,
) -> None:
    """Insert a step between a converter's calibration and its quantisation.

    Args:
        converter: from `make_converter`.
        change: (float file with calibrated ranges, names of the tensors that stay in float) -> file to quantise.
        find_float_names: (float file) -> names of the tensors whose operations stay in float; only for int8
            activations. None quantises all operations that the converter can.
        per_channel: as for `make_converter`.
    """

    def quantize_changed(data: bytes, found: bytes, types: ConverterTypes) -> bytes:
        float_names = [] if find_float_names is None else find_float_names(data)
        calibrated = change(found, float_names)
        in_type, out_type, activations, biases, allow_float, variables, debug = types
        if activations is tf.int16 and find_float_names is None:
            # `mlir_quantize` has no int16 activations; TensorFlow's calibration class quantises to int16.
            numbers = [np.dtype(dtype.as_numpy_dtype).num for dtype in (in_type, out_type, activations, biases)]
            result: bytes = private.int16_quantizer(calibrated).QuantizeModel(
                *numbers[:2], allow_float, *numbers[2:], False, False
            )
            return result
        return bytes(
            mlir_quantize(
                calibrated,
                disable_per_channel=not per_channel,
                input_data_type=in_type,
                output_data_type=out_type,
                denylisted_nodes=None if find_float_names is None else float_names,
                enable_variable_quantization=variables,
                debug_options_str=debug.SerializeToString(),
            )
        )

    private.quantize_after_calibration(converter, quantize_changed)


@contextmanager
def _without_loops() -> Iterator[None]:
    """In this context, Keras' recurrent layers are traced unrolled, where the number of steps is known.

    Reversing the steps is traced as GATHER instead of REVERSE_V2. TFLite requires one range for input and output of
    both, but the converter of TensorFlow 2.21 ties them for GATHER only; with REVERSE_V2 the output had 13 dB SQNR.
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
            # When unrolling backwards, Keras zeroes masked outputs by the mask in forward order, which is wrong.
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
    """Refuse a graph with a loop: in TensorFlow 2.21, calibrating it crashes the process (SIGSEGV)."""
    bodies = private.function_bodies(graph)
    looping = {body.signature.name for body in bodies if any(node.op in _LOOPS for node in body.node_def)}
    for op in graph.get_operations():
        called = op.get_attr("f").name if "PartitionedCall" in op.type else None
        if op.type in _LOOPS or called in looping:
            raise UnsupportedModelError(
                f"operation {op.name!r} is a loop",
                required="a graph without loops, as the TFLite converter's calibration crashes on them",
                received=op.type,
                remedy="use a recipe for QAT or with float32 activations (wi8_afp32), or unroll the loop in the model",
            )


def _converter_for(function: Function, signature: list[tf.TensorSpec], *, calibrated: bool) -> Any:
    """The converter that fits the function: a leaner one if the function reads no variables, else TensorFlow's own."""
    graph = func_graph_from_py_func("inference", function, signature, {})
    if calibrated:
        _refuse_loops(graph)
    if not graph.captures:
        return _ConstantsConverter(graph)
    # A layer whose own `call` is traced (LSTM, PReLU) reads variables; this converter turns them into constants.
    traced = tf.function(function, input_signature=signature, autograph=False).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
    converter.experimental_lower_to_saved_model = False
    return converter


#: Smallest graph, in bytes, that is freed by a garbage collection at once. A collection visits every Python object of
#: TensorFlow; of smaller graphs, at most a few copies stay in memory until Python's next collection.
_MIN_COLLECTED_BYTES = 64 * 2**20


class _ConstantsConverter(TFLiteFrozenGraphConverterV2):
    """Converts a graph that reads no variables, without TensorFlow's preparations.

    TensorFlow's own class first freezes variables, even if there are none, and runs Grappler's constant folding, which
    the converter repeats: about ten copies of all weights, and more than half of the time of a conversion. Three copies
    are left in Python: the graph, the GraphDef and its serialised form. Only the last exists during the conversion.
    """

    def __init__(self, graph: tf.Graph) -> None:
        definition = graph.as_graph_def()
        self._is_large = definition.ByteSize() >= _MIN_COLLECTED_BYTES
        self._definition: Any = _Definition(definition)
        # The converter reads only name, dtype and shape of a tensor, so that the graph itself can be freed.
        self._outputs = [SimpleNamespace(name=tensor.name) for tensor in graph.outputs]
        with tf.Graph().as_default():
            self._inputs = [
                tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name=tensor.op.name) for tensor in graph.inputs
            ]
        dismantle_func_graph(graph)
        # The base class reads the function's graph only for stack traces, and accepts None.
        super().__init__([SimpleNamespace(graph=None)])
        self.experimental_lower_to_saved_model = False

    def _freeze_concrete_function(self) -> tuple[Any, Any, Any, Any]:
        """(definition, inputs, outputs, frozen function), as the base class expects them."""
        if self._is_large:
            gc.collect()  # graph and operations refer to each other, so only a collection frees them
        return self._definition, self._inputs, self._outputs, None

    def _optimize_tf_model(self, definition: tf.compat.v1.GraphDef, *_: object) -> Any:
        """The definition unchanged: no Grappler optimisation."""
        return definition


class _Definition:
    """Stands for a GraphDef and frees it once serialised: the base class would keep it for the whole conversion."""

    def __init__(self, definition: tf.compat.v1.GraphDef) -> None:
        self._definition = definition
        # The base class reads op type (to find fake-quant operations), name and origin of each node. They are copied,
        # as a reference to a part of a protobuf would keep the whole message alive.
        self.node = [_outline(node) for node in definition.node]
        functions = [[_outline(node) for node in function.node_def] for function in definition.library.function]
        self.library = SimpleNamespace(function=[SimpleNamespace(node_def=nodes) for nodes in functions])

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """The serialised GraphDef; afterwards the GraphDef is freed, so this can be called once."""
        data: bytes = self._definition.SerializeToString()
        del self._definition
        return data


def _outline(node: tf.compat.v1.NodeDef) -> SimpleNamespace:
    origin = SimpleNamespace(original_node_names=(), original_func_names=())
    return SimpleNamespace(op=node.op, name=node.name, experimental_debug_info=origin)
