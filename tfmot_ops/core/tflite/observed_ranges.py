"""The activation ranges of a float TFLite file, chosen from the values of its tensors on calibration samples.

The TFLite converter's own calibration knows minimum and maximum only, and some of them are wrong: an operation such as
ADD may write its result over one of its inputs, whose range then holds the values of the result too. Here the file runs
in an interpreter that keeps every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from tfmot_ops.core.quantization.observers import Extremes, Observer
from tfmot_ops.core.quantization.scales import Range
from tfmot_ops.core.tflite.file_ranges import constants_in, ranges_in, shared_ranges, with_ranges
from tfmot_ops.core.tflite.interpreter import make_interpreter

#: Samples that count as one batch where a method averages over batches; the size of the batches before QAT.
_BATCH = 64


def observed_ranges(
    data: bytes, rows: Iterable[list[np.ndarray]], observer: Callable[[], Observer], names: Collection[str]
) -> dict[str, Range]:
    """Run a float file on samples, and choose the ranges of its tensors.

    Args:
        data: a float TFLite file.
        rows: the samples, each a list of one array [batch, ...] for each input, in the file's order.
        observer: makes an observer for one tensor.
        names: of the tensors whose ranges are wanted; constants have none.

    Returns:
        Tensor name -> (low, high), for the wanted tensors that the interpreter can read. Tensors that TFLite ties have
        the union of their ranges, except by minimum and maximum, which the quantiser ties itself.
    """
    interpreter = make_interpreter(data, xnnpack=False, keep_tensors=True)
    interpreter.allocate_tensors()
    inputs = [detail["index"] for detail in interpreter.get_input_details()]
    constants = constants_in(data)
    wanted = {
        detail["index"]: detail["name"]
        for detail in interpreter.get_tensor_details()
        if detail["name"] in names and detail["name"] not in constants and detail["dtype"] is np.float32
    }
    observers: dict[int, Observer] = {}
    count = 0
    for count, row in enumerate(rows, start=1):
        interpreter.reset_all_variables()
        for index, part in zip(inputs, row, strict=True):
            interpreter.set_tensor(index, part)
        interpreter.invoke()
        for index in wanted if count == 1 else observers:
            try:
                # A view, and no copy: it is read before the next run.
                values = interpreter.tensor(index)()
            except ValueError:  # a tensor that exists within an operation only
                continue
            observers.setdefault(index, observer()).add(values)
            del values
        if count % _BATCH == 0:
            _end_batch(observers)
    if count % _BATCH:
        _end_batch(observers)
    found = {wanted[index]: each.range() for index, each in observers.items()}
    return found if observer is Extremes else shared_ranges(data, found)


def _end_batch(observers: Mapping[int, Observer]) -> None:
    for each in observers.values():
        each.end_batch()


def observe_calibrated(data: bytes, rows: Iterable[list[np.ndarray]], observer: Callable[[], Observer]) -> bytes:
    """Replace the ranges that the TFLite converter's calibration wrote into a file by chosen ones.

    Args:
        data: a float TFLite file with ranges.
        rows: see `observed_ranges`.
        observer: see `observed_ranges`.

    Returns:
        The file with the chosen ranges; a tensor that the interpreter cannot read keeps its range.
    """
    return with_ranges(data, observed_ranges(data, rows, observer, ranges_in(data)))
