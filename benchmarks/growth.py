"""Whether `core.quantize` grows with the number of layers, and not faster."""

from __future__ import annotations

from benchmarks.question import Question, Row


def measure(model: str) -> dict[str, float]:
    from benchmarks import nets
    from tfmot_ops import core

    net = nets.build(model)
    seconds = nets.cpu_seconds(lambda: core.quantize(net, nets.RECIPE))
    return {"layers": len(net.layers), "ms a layer": 1e3 * seconds / len(net.layers)}


def answer(model: str, figures: dict[str, float]) -> list[Row]:
    return [Row(model, "ms a layer: level within a family", figures)]


QUESTION = Question(
    text="Does the cost of inserting the quantisers grow in proportion to the layers?",
    unit="CPU ms",
    models=("DenseNet121", "DenseNet169", "DenseNet201", "ResNet50", "ResNet101", "ResNet152"),
    measure=measure,
    answer=answer,
    jobs={"quantize": {}},
)
