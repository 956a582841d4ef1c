"""`core.quantize` against tfmot's `quantize_apply`, and against one plain copy of the model."""

from __future__ import annotations

from typing import Any

from benchmarks.question import Aim, Question, Row, ratio_row

#: Figure of each variant: CPU seconds of one call, the network built and annotated before.
_VARIANTS = ("quantize", "quantize_apply", "clone_model")


def measure(model: str, variant: str) -> dict[str, float]:
    from benchmarks import nets
    from tfmot_ops import core
    from tfmot_ops.core import keras

    net = nets.build(model)
    if variant == "quantize":
        return {variant: nets.cpu_seconds(lambda: core.quantize(net, nets.RECIPE))}
    if variant == "quantize_apply":
        annotated = nets.annotate(net)
        return {variant: nets.cpu_seconds(lambda: nets.apply_tfmot(annotated))}

    def clone() -> Any:
        copy = keras.models.clone_model(net)
        copy.set_weights(net.get_weights())

    return {variant: nets.cpu_seconds(clone)}


def answer(model: str, figures: dict[str, float]) -> list[Row]:
    return [
        ratio_row(model, figures, "quantize_apply", "quantize", Aim(5.0)),
        ratio_row(model, figures, "quantize", "clone_model", Aim(2.5, at_least=False)),
    ]


QUESTION = Question(
    text="What does inserting the quantisers cost?",
    unit="CPU s",
    models=("DenseNet201", "ResNet152", "NASNetMobile"),
    measure=measure,
    answer=answer,
    jobs={variant: {"variant": variant} for variant in _VARIANTS},
)
