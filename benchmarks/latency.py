"""An inference of the file from QAT against the converter's PTQ int8 file and the float file of the same network."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.question import Aim, Question, Row, ratio_row

_CALIBRATION = 32
_WARM_UP = 5
#: Of the six orders in which the three files can run.
_ROUNDS = 10


def measure(model: str) -> dict[str, float]:
    """CPU milliseconds of one inference in one thread: the median over rounds in which each file runs in turn."""
    from benchmarks import nets
    from tfmot_ops import core

    net = nets.build(model)
    x = nets.images(net, _CALIBRATION)
    quantized, _ = core.quantize(net, nets.RECIPE, x)
    files = {
        "int8 from QAT": core.export_tflite(quantized, nets.RECIPE),
        "int8 from PTQ": _convert(net, x),
        "float": _convert(net, None),
    }
    runs = {name: _inference(data) for name, data in files.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    # In every order equally often: after the float file the next one finds a cold cache, 7 % for ResNet50.
    for names in [*itertools.permutations(runs)] * _ROUNDS:
        for name in names:
            start = time.process_time_ns()
            runs[name]()
            times[name].append(1e-6 * (time.process_time_ns() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _convert(net: Any, calibration: Any) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(net)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    data: bytes = converter.convert()
    return data


def _inference(data: bytes) -> Callable[[], Any]:
    from tfmot_ops.core.tflite.interpreter import make_interpreter

    interpreter = make_interpreter(data, 1)
    interpreter.allocate_tensors()
    for _ in range(_WARM_UP):
        interpreter.invoke()
    run: Callable[[], Any] = interpreter.invoke
    return run


def answer(model: str, figures: dict[str, float]) -> list[Row]:
    return [
        ratio_row(model, figures, "int8 from QAT", "int8 from PTQ", Aim(1.03, at_least=False)),
        ratio_row(model, figures, "float", "int8 from QAT"),
    ]


QUESTION = Question(
    text="How fast is the file?",
    unit="CPU ms",
    models=("MobileNetV2", "ResNet50"),
    measure=measure,
    answer=answer,
    jobs={"files": {}},
)
