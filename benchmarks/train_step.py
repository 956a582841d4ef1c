"""A training step of our QAT model against one of the float model, and one of tfmot's QAT model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.question import Aim, Question, Row, ratio_row

_BATCH = 16
#: Steps of each model before the clock counts: the first traces, the next ones find their buffers.
_WARM_UP = 3
_ROUNDS = 15


def measure(model: str) -> dict[str, float]:
    """CPU milliseconds of one step: the median over rounds in which each model takes one step in turn."""
    from benchmarks import nets
    from tfmot_ops import core

    net = nets.build(model)
    models = {
        "float step": net,
        "QAT step": core.quantize(net, nets.RECIPE)[0],
        "tfmot's QAT step": nets.apply_tfmot(nets.annotate(net)),
    }
    steps = {name: _step(each, nets.images(each, _BATCH)) for name, each in models.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_ROUNDS):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _step(model: Any, x: Any) -> Callable[[], Any]:
    import numpy as np
    import tensorflow as tf

    from tfmot_ops.core import keras

    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    batch = tf.constant(x), tf.constant(np.arange(len(x)) % model.output_shape[-1])
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    train = model.make_train_function()
    for _ in range(_WARM_UP):
        train(batches)
    # The loss as a number: it is there when the step is done.
    return lambda: float(train(batches)["loss"])


def answer(model: str, figures: dict[str, float]) -> list[Row]:
    return [
        ratio_row(model, figures, "QAT step", "float step", Aim(1.5, at_least=False)),
        ratio_row(model, figures, "tfmot's QAT step", "QAT step", Aim(1.0)),
    ]


QUESTION = Question(
    text="What does a QAT step cost?",
    unit="CPU ms",
    models=("MobileNetV2", "ResNet50"),
    measure=measure,
    answer=answer,
    jobs={"steps": {}},
)
