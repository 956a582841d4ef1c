"""`core.export_tflite` against the TFLite converter on the Keras model, of our QAT model and of tfmot's."""

from __future__ import annotations

import warnings
from typing import Any

from benchmarks.question import Aim, Question, Row, ratio_row

_VARIANTS = ("export_tflite", "converter", "converter on tfmot's")


def measure(model: str, variant: str) -> dict[str, float]:
    from benchmarks import nets
    from tfmot_ops import core

    net = nets.build(model)
    if variant == "converter on tfmot's":
        quantized = nets.apply_tfmot(nets.annotate(net))
    else:
        quantized, _ = core.quantize(net, nets.RECIPE)
    if variant == "export_tflite":
        return {variant: nets.cpu_seconds(lambda: core.export_tflite(quantized, nets.RECIPE))}
    return {variant: nets.cpu_seconds(lambda: _convert(quantized))}


def _convert(quantized: Any) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data: bytes = converter.convert()
    return data


def answer(model: str, figures: dict[str, float]) -> list[Row]:
    return [
        ratio_row(model, figures, "converter on tfmot's", "export_tflite", Aim(3.0)),
        ratio_row(model, figures, "converter", "export_tflite", Aim(3.0)),
    ]


QUESTION = Question(
    text="What does the way to a TFLite file cost?",
    unit="CPU s",
    models=("MobileNetV2", "ResNet50"),
    measure=measure,
    answer=answer,
    jobs={variant: {"variant": variant} for variant in _VARIANTS},
)
