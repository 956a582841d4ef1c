"""A TFLite file run with TFLite's reference kernels, whose results other runtimes should give bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfmot_ops.core.keras.batches import fitted
from tfmot_ops.core.keras.types import Array
from tfmot_ops.core.tflite.interpreter import Inputs, arrays, check_inputs, make_interpreter, quantized


@dataclass(frozen=True)
class ReferenceRun:
    """What goes into a file and comes out of it, as the numbers of its own types.

    Attributes:
        inputs: one array [N, ...] an input of the file, in its order.
        outputs: one array [N, ...] an output of the file, in its order.
    """

    inputs: list[Array]
    outputs: list[Array]


def reference_run(data: bytes, x: Inputs) -> ReferenceRun:
    """Run a file sample by sample with TFLite's reference kernels (`BUILTIN_REF`), each from a reset state.

    Args:
        data: the file's bytes; its batch is 1.
        x: float inputs: one array [N, ...], or one for each input of the file, in its order.

    Raises:
        ArtifactError: the bytes are no TFLite file.
        SamplesError: the arrays do not fit the file's inputs.
    """
    checked = make_interpreter(data)  # refuses what is no TFLite file
    details, columns = checked.get_input_details(), arrays(x)
    shapes = [[int(size) for size in detail["shape_signature"]] for detail in details]
    check_inputs(shapes, columns, "TFLite file")
    raw = [
        quantized(fitted(column, shape), detail) for column, shape, detail in zip(columns, shapes, details, strict=True)
    ]
    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    rows = []
    for index in range(len(raw[0])):
        interpreter.reset_all_variables()
        for detail, column in zip(details, raw, strict=True):
            interpreter.set_tensor(detail["index"], column[index : index + 1])
        interpreter.invoke()
        rows.append([interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()])
    return ReferenceRun(raw, [np.concatenate(parts) for parts in zip(*rows, strict=True)])
