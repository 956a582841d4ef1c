"""Writes the signature of a TFLite file: the model's names of inputs and outputs, which a program on a device uses."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ai_edge_litert import schema_py_generated as schema
from flatbuffers.table import Table

from tfmot_ops.core.graph.ir import Graph
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.types import Model
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.tflite.flatbuffer import file_bytes

#: Name of the signature, as TensorFlow's own converter gives it.
_KEY = "serving_default"
#: Alignment of weights in a file; TFLite asks for 16.
_ALIGNMENT = 64
#: Vtable positions of the members of the schema's table `Model` that are offsets, except the signatures.
_MEMBERS = (6, 8, 10, 12, 14, 16)
#: Offsets are unsigned 32-bit numbers, and FlatBuffers end at 2 GB.
_LARGEST = 2**31 - 1


def with_model_names(data: bytes, model: Model, graph: Graph) -> bytes:
    """A file with a signature that has the names of the model's inputs and outputs.

    Args:
        data: file made from the model, with its inputs and outputs in the model's order.
        model: float or QAT model.
        graph: of the model, or of its normalised form.
    """
    inputs = [graph.input_names[tensor] for tensor in graph.inputs()]
    return with_signature(data, inputs, output_names(model))


def output_names(model: Model) -> list[str]:
    """Names of a model's outputs in the order of a TFLite file: the sorted keys of a dict, else Keras' output names."""
    outputs = private.nested_outputs(model)
    if isinstance(outputs, Mapping):
        return sorted(map(str, outputs))
    names, layers = list(model.output_names or ()), private.output_layers(model)
    if len(names) != len(layers):
        return names
    # In a loaded model, the output names are those of the wrappers of pruning or quantisation.
    return [inner_layer(layer).name if name == layer.name else name for name, layer in zip(names, layers, strict=True)]


def with_signature(data: bytes, inputs: list[str], outputs: list[str]) -> bytes:
    """Add a signature to a file; returns the file unchanged if the number of names is wrong, or a name occurs twice.

    A new flatbuffer header with the signature is put in front of the file, and refers to the file's parts. Writing the
    whole file again would take several copies of all weights.

    Args:
        data: TFLite file; a signature that it has, of names such as `input_0`, is replaced.
        inputs: names, in the order of the file's inputs.
        outputs: names, in the order of the file's outputs.
    """
    file = schema.Model.GetRootAs(data, 0)
    graph = file.Subgraphs(0)
    fits = (len(inputs), len(outputs)) == (graph.InputsLength(), graph.OutputsLength())
    are_unique = len({*inputs}) == len(inputs) and len({*outputs}) == len(outputs)
    if not fits or not are_unique or len(data) > _LARGEST:
        return data
    signature = schema.SignatureDefT(
        inputs=[_entry(name, graph.Inputs(place)) for place, name in enumerate(inputs)],
        outputs=[_entry(name, graph.Outputs(place)) for place, name in enumerate(outputs)],
        signatureKey=_KEY,
        subgraphIndex=0,
    )
    old = _root(data)
    head = _head(file.Version(), old, signature)
    new = _root(head)
    for member in _MEMBERS:
        place, source = new.Offset(member), old.Offset(member)
        if place and source:
            place, source = new.Pos + place, old.Pos + source
            target = len(head) + source + struct.unpack_from("<I", data, source)[0]
            struct.pack_into("<I", head, place, target - place)
    return bytes(head) + data


def _entry(name: str, tensor: int) -> schema.TensorMapT:
    return schema.TensorMapT(name=name, tensorIndex=tensor)


def _root(data: bytes | bytearray) -> Table:
    return Table(data, struct.unpack_from("<I", data)[0])


def _head(version: int, old: Table, signature: schema.SignatureDefT) -> bytearray:
    """A file of an empty model with the signature, and with the members that the old one has, each still empty."""
    empty = schema.ModelT(version=version, signatureDefs=[signature])
    names = ("operatorCodes", "subgraphs", "description", "buffers", "metadataBuffer", "metadata")
    for member, name in zip(_MEMBERS, names, strict=True):
        setattr(empty, name, ("" if name == "description" else []) if old.Offset(member) else None)
    head = bytearray(file_bytes(empty))
    head += bytes(-len(head) % _ALIGNMENT)
    return head
