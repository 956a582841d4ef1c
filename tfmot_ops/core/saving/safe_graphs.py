"""Which TensorFlow operations a SavedModel may contain unless `allow_unsafe` is set: those that only use memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache

import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.private import dispatch, get_canonical_name_for_symbol, get_symbol_from_name, op_def_registry

#: TensorFlow's groups of operations (`tensorflow.python.ops.gen_<group>_ops`) that compute or keep values in memory.
#: Not listed: the groups for files, data sets, Python, other processes, devices and debuggers.
_GROUPS = (
    *("array", "bitwise", "candidate_sampling", "control_flow", "count", "ctc", "cudnn_rnn", "functional", "image"),
    *("linalg", "list", "lookup", "manip", "map", "math", "nn", "optional", "parsing", "ragged_array"),
    *("ragged_conversion", "ragged_math", "random", "random_index_shuffle", "resource_variable", "rnn", "set"),
    *("sparse", "special_math", "spectral", "state", "stateful_random", "stateless_random", "string"),
    *("training", "uniform_quant"),
)
#: Operations of these groups that read a file, end the process or run on another machine.
_NOT_IN_MEMORY = {
    *("Abort", "FixedUnigramCandidateSampler", "ImmutableConst", "InitializeTableFromTextFile"),
    *("InitializeTableFromTextFileV2", "RemoteCall"),
}
#: Harmless operations of groups that are not listed: `data_flow` also has queues and readers, `logging` summaries.
_OTHERS = {"Assert", "DynamicPartition", "DynamicStitch", "ParallelDynamicStitch", "Print", "PrintV2", "Timestamp"}
_PREFIXES_OF_OTHERS = ("Stack", "TensorArray")
#: Types of tensors (`DataType`) whose values have no fixed size, or that say no type.
_WITHOUT_SIZE = {0, tf.string.as_datatype_enum, tf.resource.as_datatype_enum, tf.variant.as_datatype_enum}
#: Operations of the functions with which a SavedModel saves and restores its own variables.
_SAVER = {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"}

#: Namespaces of TensorFlow's public interface (`tf.math`) whose functions take and return tensors.
_NAMESPACES = {
    *("__operators__", "bitwise", "debugging", "dtypes", "image", "keras.activations", "keras.backend"),
    *("keras.losses", "keras.metrics", "linalg", "linalg.experimental", "math", "math.special", "nn"),
    *("nn.experimental", "quantization", "ragged", "random", "random.experimental", "sets", "signal", "sparse"),
    *("strings",),
}
#: Further functions that take and return tensors, at the top level of TensorFlow: `tf.concat`.
_FUNCTIONS = {
    *("arg_max", "arg_min", "argsort", "batch_gather", "batch_to_space", "batch_to_space_nd", "bitcast"),
    *("boolean_mask", "broadcast_dynamic_shape", "broadcast_static_shape", "broadcast_to", "cast"),
    *("clip_by_average_norm", "clip_by_global_norm", "clip_by_norm", "clip_by_value", "concat", "conv"),
    *("convert_to_tensor", "div", "dynamic_partition", "dynamic_stitch", "edit_distance", "einsum", "ensure_shape"),
    *("expand_dims", "extract_volume_patches", "eye", "fftnd", "fill", "fingerprint", "floor_div", "gather"),
    *("gather_nd", "histogram_fixed_width", "histogram_fixed_width_bins", "identity", "identity_n", "ifftnd"),
    *("irfftnd", "linspace", "meshgrid", "no_op", "norm", "one_hot", "ones", "ones_like", "pad", "parallel_stack"),
    *("range", "rank", "realdiv", "repeat", "reshape", "reverse", "reverse_sequence", "rfftnd", "roll", "scatter_nd"),
    *("searchsorted", "sequence_mask", "setdiff1d", "shape", "shape_n", "size", "slice", "sort", "space_to_batch"),
    *("space_to_batch_nd", "sparse_to_dense", "split", "squeeze", "stack", "stop_gradient", "strided_slice"),
    *("tensor_scatter_nd_add", "tensor_scatter_nd_max", "tensor_scatter_nd_min", "tensor_scatter_nd_sub"),
    *("tensor_scatter_nd_update", "tensordot", "tile", "to_bfloat16", "to_complex128", "to_complex64", "to_double"),
    *("to_float", "to_int32", "to_int64", "transpose", "truncatediv", "truncatemod", "tuple", "unique"),
    *("unique_with_counts", "unravel_index", "unstack", "where", "zeros", "zeros_like"),
}
#: Functions of these namespaces that read a file, call a function argument, or look up an object by name.
_NOT_OF_TENSORS = {
    *("keras.activations.deserialize", "keras.activations.get", "keras.activations.serialize"),
    *("keras.backend.batch_get_value", "keras.backend.batch_set_value", "keras.backend.rnn"),
    *("nn.fixed_unigram_candidate_sampler", "ragged.map_flat_values", "random.fixed_unigram_candidate_sampler"),
    *("sparse.map_values",),
}


def _members(module: str) -> Iterator[str]:
    yield from private.names_of_operations(module)


@cache
def _operations_in_memory() -> frozenset[str]:
    modules = ["gen_stateless_random_ops_v2", *(f"gen_{group}_ops" for group in _GROUPS)]
    names = {name for module in modules for name in _members(module)} | _OTHERS
    names |= {name for name in _members("gen_data_flow_ops") if name.startswith(_PREFIXES_OF_OTHERS)}
    return frozenset(name for name in names - _NOT_IN_MEMORY if op_def_registry.get(name) is not None)


def is_function_of_tensors(function: object) -> bool:
    """Whether a function is public in TensorFlow and only computes tensors from tensors.

    Functions without dispatch are refused: Keras cannot call them on symbolic tensors, so it never saves them.
    """
    if not hasattr(function, dispatch.FALLBACK_DISPATCH_ATTR):
        return False
    name = get_canonical_name_for_symbol(function, add_prefix_to_v1_names=True)
    name = name or get_canonical_name_for_symbol(function, api_name="keras", add_prefix_to_v1_names=True) or ""
    name = name.removeprefix("compat.v1.")
    namespace = name.rpartition(".")[0]
    return name not in _NOT_OF_TENSORS and (namespace in _NAMESPACES or name in _FUNCTIONS)


def is_symbol_of_tensors(symbol: object) -> bool:
    """Whether the name of a `TFOpLambda` layer's function (`math.add`) names a function of tensors; see above."""
    return isinstance(symbol, str) and is_function_of_tensors(get_symbol_from_name(symbol))


def unsafe_operation(node: tf.compat.v1.NodeDef, functions: Iterable[str] = ()) -> str | None:
    """The operation of a graph's node if it does anything besides computing in memory; otherwise None.

    Args:
        node: a NodeDef.
        functions: names of the functions in the graph's library, which a node may call.
    """
    if node.op in _operations_in_memory():
        # tf.print can append to a file.
        stream = node.attr["output_stream"].s if node.op == "PrintV2" else b""
        return None if not stream.startswith(b"file:") else f"operation {node.op} to {stream.decode(errors='replace')}"
    if node.op in functions and op_def_registry.get(node.op) is None:
        return None
    return f"operation {node.op}"


def unsafe_parts(meta_graph: tf.compat.v1.MetaGraphDef) -> Iterator[tuple[str, str]]:
    """Find the operations of a SavedModel that do anything besides computing in memory.

    Every SavedModel has functions that save and restore its variables by operations on files. These functions are
    accepted if no other function and no object of the model calls them: then only the outer graph does, which
    TensorFlow 2 does not run.

    Args:
        meta_graph: a MetaGraphDef of the file.

    Yields:
        (part of the graph, its unsafe operation), as texts for a message.
    """
    library = meta_graph.graph_def.library.function
    names = {function.signature.name for function in library}
    called = set(_called(meta_graph, names))
    for node in meta_graph.graph_def.node:
        unsafe = unsafe_operation(node, names)
        if unsafe:
            yield f"node {node.name}", f"{unsafe} (node {node.name})"
    for function in library:
        name = function.signature.name
        saver = name not in called and "api_implements" not in function.attr
        for node in function.node_def:
            unsafe = None if saver and node.op in _SAVER else unsafe_operation(node, names)
            if unsafe:
                yield f"function {name}", f"{unsafe} (node {node.name})"


def constant_bytes(meta_graph: tf.compat.v1.MetaGraphDef) -> int:
    """Bytes of all constants of a SavedModel once they are read: a file may hold one value for a whole tensor."""
    functions = meta_graph.graph_def.library.function
    nodes = [*meta_graph.graph_def.node, *(node for function in functions for node in function.node_def)]
    tensors = [node.attr["value"].tensor for node in nodes if node.op == "Const"]
    return sum(
        math.prod(max(0, axis.size) for axis in tensor.tensor_shape.dim) * tf.as_dtype(tensor.dtype).size
        for tensor in tensors
        if tensor.dtype not in _WITHOUT_SIZE
    )


def _called(meta_graph: tf.compat.v1.MetaGraphDef, names: set[str]) -> Iterator[str]:
    """Names of the functions that a function or an object of a SavedModel can call."""
    objects = meta_graph.object_graph_def
    yield from objects.concrete_functions
    for item in objects.nodes:
        yield from item.function.concrete_functions
        yield item.bare_concrete_function.concrete_function_name
        yield item.captured_tensor.concrete_function
    library = meta_graph.graph_def.library
    for gradient in library.gradient:
        yield from (gradient.function_name, gradient.gradient_func)
    for function in library.function:
        for node in function.node_def:
            yield node.op
            for value in node.attr.values():
                yield from _functions_of(value, names)


def _functions_of(value: tf.compat.v1.AttrValue, names: set[str]) -> Iterator[str]:
    yield from (value.func.name, *(function.name for function in value.list.func))
    # Some operations have a function's name in a string attribute.
    texts = (text.decode(errors="replace") for text in (value.s, *value.list.s))
    yield from (text for text in texts if text in names)
