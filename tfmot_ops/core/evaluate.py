"""Accuracy of, and agreement between, Keras models and TFLite files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfmot_ops.core.legacy_keras import keras
from tfmot_ops.errors import (
    ArtifactError,
    ExportError,
    SamplesError,
    StepFailedError,
    UnsupportedModelError,
)

Array = npt.NDArray[Any]
#: One array [N, ...], or one for each input, in the model's order.
Inputs = Array | Sequence[Array]

_BATCH_SIZE = 64


def evaluate(
    model_or_bytes: keras.Model | bytes, x: Inputs, y: Array, batch_size: int = _BATCH_SIZE
) -> dict[str, float]:
    """Measure a classifier.

    Args:
        model_or_bytes: Keras model or TFLite file with one output, [N, classes] or, for two classes, [N, 1].
        x: inputs [N, ...].
        y: labels [N].
        batch_size: samples that are run at once; does not change the figures.

    Returns:
        `accuracy`: share of samples whose label is the largest output, in [0, 1].

    Raises:
        UnsupportedModelError: the model has several outputs, or one without a row of scores per sample.
        SamplesError: the inputs do not fit the model, or there is not one label for each sample.
        ArtifactError: the bytes are no TFLite file.
        StepFailedError: an output is NaN or infinite; the largest of such outputs is no class.
    """
    outputs = _finite_outputs(model_or_bytes, x, batch_size)
    classes, labels = _classes(outputs), np.asarray(y).reshape(-1)
    if classes.shape != labels.shape:
        raise SamplesError(
            "the labels do not fit the samples",
            required=f"{len(classes)} labels, one for each sample",
            received=f"{len(labels)} labels, from an array of shape {list(np.shape(y))}",
            remedy="give the class number of each sample, not one-hot rows",
        )
    return {"accuracy": float(np.mean(classes == labels))}


def predict(model_or_bytes: keras.Model | bytes, x: Inputs, batch_size: int = _BATCH_SIZE) -> Array | list[Array]:
    """Run a Keras model or a TFLite file on float inputs and give float outputs.

    Integer inputs of a TFLite file are quantised with its own scale and zero point, integer outputs dequantised.

    Args:
        model_or_bytes: Keras model or TFLite file.
        x: inputs [N, ...]; for a TFLite file with several, in the file's order.
        batch_size: samples that are run at once; a file with a fixed batch of 1 is run sample by sample.

    Returns:
        Outputs [N, ...], float32 for a TFLite file; a list with several outputs, those of a dict in the order of their
        names, which is the file's.

    Raises:
        SamplesError: the inputs do not fit the model.
        ArtifactError: the bytes are no TFLite file.
    """
    if isinstance(model_or_bytes, bytes):
        outputs = _run_tflite(model_or_bytes, x, batch_size)
    else:
        result = _run_keras(model_or_bytes, x, batch_size)
        values = [result[name] for name in sorted(result)] if isinstance(result, dict) else result
        outputs = list(values) if isinstance(values, list | tuple) else [values]
    return outputs[0] if len(outputs) == 1 else outputs


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal to quantisation noise ratio in dB: 10 log10(sum reference^2 / sum (reference - other)^2).

    Infinite when the two are equal; such a value has no JSON form.
    """
    return power_ratio_db(*signal_and_noise(reference, other))


def signal_and_noise(reference: Array, other: Array) -> tuple[float, float]:
    """(sum reference^2, sum (reference - other)^2); what several batches give may be added up."""
    signal = np.asarray(reference, np.float64)
    return float(np.sum(np.square(signal))), float(np.sum(np.square(signal - np.asarray(other, np.float64))))


def power_ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite without noise, and minus infinite without a signal."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def agreement(
    model_or_bytes_a: keras.Model | bytes,
    model_or_bytes_b: keras.Model | bytes,
    x: Inputs,
    batch_size: int = _BATCH_SIZE,
) -> dict[str, float]:
    """How far two models give the same answers.

    Args:
        model_or_bytes_a: the reference, usually the float model.
        model_or_bytes_b: the model to compare.
        x: inputs [N, ...] of both.
        batch_size: samples that are run at once.

    Returns:
        `sqnr_db` over all outputs, in dB, left out when the outputs are equal (it is infinite then) or the
        reference is all 0; `top1_agreement`, share of samples with the same class, in [0, 1], for one output.

    Raises:
        UnsupportedModelError: the two give outputs of different shapes.
    outputs = _finite_outputs(model_or_bytes, x, batch_size)
    """
    first, second = (_finite_outputs(each, x, batch_size) for each in (model_or_bytes_a, model_or_bytes_b))
    lists = [outputs if isinstance(outputs, list) else [outputs] for outputs in (first, second)]
    shapes = [[output.shape for output in outputs] for outputs in lists]
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            "the two models cannot be compared",
            required=f"outputs of one shape: {shapes[0]}",
            received=f"{shapes[1]}",
            remedy="compare a model with what was made of it",
        )
    flat = [np.concatenate([output.ravel() for output in outputs]) for outputs in lists]
    figures = {"sqnr_db": sqnr_db(flat[0], flat[1])}
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    if len(lists[0]) == 1:
        figures["top1_agreement"] = float(np.mean(_classes(first) == _classes(second)))
    return figures


def _finite_outputs(model_or_bytes: keras.Model | bytes, x: Inputs, batch_size: int) -> Array | list[Array]:
    """What `predict` gives, refused where a value of it is NaN or infinite: no figure can be made of such values."""
    outputs = predict(model_or_bytes, x, batch_size)
    parts = outputs if isinstance(outputs, list) else [outputs]
    wrong = [~np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts]
    samples = np.logical_or.reduce(wrong)
    if samples.any():
        is_file = isinstance(model_or_bytes, bytes)
        raise StepFailedError(
            f"the {'TFLite file' if is_file else 'model'} returned NaN or infinity",
            required="finite outputs for every sample",
            received=f"NaN or infinity for {int(samples.sum())} of {len(samples)} samples, "
            f"the first at index {int(samples.argmax())}",
            remedy="look for NaN and infinity in the weights and in the samples"
            + (", and compare the file with its model by layer: core.layer_sqnr" if is_file else ""),
        )
    return outputs


def _classes(outputs: Array | list[Array]) -> npt.NDArray[np.int64]:
    """Class [N] of each sample; along the last axis, so that dense predictions [N, H, W, classes] count by pixel."""
    if isinstance(outputs, list) or outputs.ndim < 2:  # noqa: PLR2004 - [N, classes]
        raise UnsupportedModelError(
            "the output is not a row of class scores",
            required="one output [N, classes]",
            received=f"{len(outputs)} outputs" if isinstance(outputs, list) else f"shape {list(outputs.shape)}",
            remedy="use a classifier",
        )
    even_odds = 0.5  # of a sigmoid
    classes = outputs > even_odds if outputs.shape[-1] == 1 else outputs.argmax(axis=-1)
    return np.asarray(classes, np.int64).reshape(-1)


def make_interpreter(data: bytes, threads: int = 1, *, xnnpack: bool = True, keep_tensors: bool = False) -> Interpreter:
    """An interpreter for a TFLite file, tensors not yet allocated.

    Args:
        data: the file's bytes.
        threads: CPU threads.
        xnnpack: let XNNPACK, the default delegate, take the operations it can; otherwise TFLite's own kernels run, and
            each tensor of the file is there.
        keep_tensors: let each tensor keep its value to the end of a run.

    Raises:
        ArtifactError: the bytes are no TFLite file.
    """
    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        return Interpreter(
            model_content=data,
            num_threads=threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keep_tensors,
        )
    except ValueError as error:
        raise ArtifactError(
            "the TFLite file cannot be read",
            required="a TFLite flatbuffer",
            received=f"{len(data)} bytes: {error}",
            remedy="export the model again",
        ) from error


def _run_keras(model: keras.Model, x: Inputs, batch_size: int) -> Any:
    """What `model.predict` gives; samples that it refuses because they do not fit are an error of ours."""
    try:
        return model.predict(x, batch_size=batch_size, verbose=0)
    except (ValueError, tf.errors.InvalidArgumentError):
        # Looked at only now: Keras takes more than this check knows, such as [N] for an input [N, 1].
        shapes = [[-1 if size is None else size for size in tensor.shape] for tensor in model.inputs or ()]
        _check_inputs(shapes, _arrays(x), "model")
        raise


def _arrays(x: Inputs) -> list[Array]:
    return [np.asarray(each) for each in (x if isinstance(x, list | tuple) else [x])]


def _run_tflite(data: bytes, x: Inputs, batch_size: int) -> list[Array]:
    inputs = _arrays(x)
    details = make_interpreter(data).get_input_details()
    _check_inputs([detail["shape_signature"] for detail in details], inputs, "TFLite file")
    count = len(inputs[0])
    interpreter = _batched(data, [each[:batch_size] for each in inputs])
    size = batch_size if interpreter else 1
    if interpreter is None:
        interpreter = make_interpreter(data)
        _allocate(interpreter)
    parts = []
    for start in range(0, count, size):
        batch = [each[start : start + size] for each in inputs]
        if len(batch[0]) != interpreter.get_input_details()[0]["shape"][0]:
            _resize(interpreter, batch)
        parts.append(_invoke(interpreter, batch))
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _check_inputs(shapes: Sequence[Sequence[int]], inputs: list[Array], what: str) -> None:
    """Refuse inputs [N, ...] that do not fit the shapes [batch, ...] of a model; a size of -1 takes any."""
    wanted = [[int(size) for size in shape[1:]] for shape in shapes]
    given = [list(each.shape[1:]) for each in inputs]
    fits = len(wanted) == len(given) and all(
        len(one) == len(other) and all(size in (-1, there) for size, there in zip(one, other, strict=True))
        for one, other in zip(wanted, given, strict=True)
    )
    if not fits or not len(inputs[0]) or len({len(each) for each in inputs}) > 1:
        raise SamplesError(
            f"the samples do not fit the {what}",
            required=f"inputs of shapes {[['N', *shape] for shape in wanted]}, N >= 1",
            received=f"{[list(each.shape) for each in inputs]}",
            remedy="give the data the model was made for",
        )


def _allocate(interpreter: Interpreter) -> None:
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise ExportError(
            "TFLite does not run the file",
            required="operations with types, shapes and scales that the interpreter takes",
            received=str(error),
            remedy="look for NaN and infinity in the weights and in the calibration samples, and for the layer that "
            "the operation named above computes",
        ) from error


def _resize(interpreter: Interpreter, batch: list[Array]) -> None:
    for detail, values in zip(interpreter.get_input_details(), batch, strict=True):
        interpreter.resize_tensor_input(detail["index"], values.shape)
    interpreter.allocate_tensors()


def _batched(data: bytes, batch: list[Array]) -> Interpreter | None:
    """An interpreter that takes as many samples at once, or None if a fixed batch is built into the graph."""
    interpreter = make_interpreter(data)
    try:
        _resize(interpreter, batch)
        # A constant shape further down may only fail, or fold the batch into another axis, when it runs.
        together = _invoke(interpreter, batch)
    except (RuntimeError, ValueError):
        return None
    if any(part.shape[:1] != batch[0].shape[:1] for part in together):
        return None
    # Folded into another axis and out of it again, a sample is computed with its neighbours.
    single = make_interpreter(data)
    _resize(single, [each[:1] for each in batch])
    for index in {0, len(batch[0]) - 1}:
        alone = _invoke(single, [each[index : index + 1] for each in batch])
        if not all(np.allclose(one[0], part[index], 1e-3, 1e-5) for one, part in zip(alone, together, strict=True)):
            return None
    return interpreter


def _invoke(interpreter: Interpreter, batch: list[Array]) -> list[Array]:
    for detail, values in zip(interpreter.get_input_details(), batch, strict=True):
        interpreter.set_tensor(detail["index"], quantized(values, detail))
    interpreter.invoke()
    return [dequantized(interpreter.get_tensor(detail["index"]), detail) for detail in interpreter.get_output_details()]


def quantized(values: Array, detail: dict[str, Any]) -> Array:
    """Values as a tensor of a TFLite file holds them; `detail` is the interpreter's record of the tensor."""
    scale, zero_point = detail["quantization"]
    dtype = np.dtype(detail["dtype"])
    if not np.issubdtype(dtype, np.integer) or scale == 0.0:  # a scale of 0 means: not quantised
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.round(values / scale) + zero_point, limits.min, limits.max), dtype)


def dequantized(values: Array, detail: dict[str, Any]) -> Array:
    """What a tensor of a TFLite file stands for, float32; the inverse of `quantized`."""
    scale, zero_point = detail["quantization"]
    if scale == 0.0:
        return values.astype(np.float32)
    return np.asarray((values.astype(np.float32) - zero_point) * scale, np.float32)
