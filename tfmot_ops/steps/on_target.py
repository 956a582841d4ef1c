"""A step for a target: refuses operations that the device lacks, and measures what the file costs there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfmot_ops import targets
from tfmot_ops.contract import EvaluateOptions, QuantizeOptions
from tfmot_ops.steps.work import ModelWork

if TYPE_CHECKING:
    from tfmot_ops.core.keras.types import Model

#: Test samples that run in TFLite Micro, which took 0.11 s for a sample of MobileNetV2 at 96x96 (2 cores, no GPU).
_SAMPLES = 16


def require_operations(work: ModelWork[QuantizeOptions], tflite: bytes) -> None:
    """Refuse a file with operations that the step's target does not have; each with the layers it comes from."""
    from tfmot_ops.core.tflite.profile import layers_by_operation

    if work.target is not None and work.target.operations is not None:
        targets.require_operations(work.target, layers_by_operation(tflite))


def require_operations_before_training(work: ModelWork[QuantizeOptions], model: Model) -> None:
    """Check the operations of the file that a QAT model gives, before the model is trained for nothing."""
    from tfmot_ops import core

    if work.target is not None and work.target.operations is not None:
        work.say(f"checking the model's operations against target {work.target.name}")
        require_operations(work, core.export_tflite(model, work.recipe, work.calibration(model)))


def measure_target(work: ModelWork[EvaluateOptions], tflite: bytes, model: Model | None) -> None:
    """Measure what the file costs on the step's target, and refuse a file beyond its limits.

    Args:
        work: the step, which has measured the file's size, latency and arena already.
        tflite: the file's bytes.
        model: the model that was quantised, which has the order of the inputs; None without that input.
    """
    from tfmot_ops.core.tflite.interpreter import raw_inputs

    target = work.target
    if target is None:
        return
    inputs: list[Any] = []
    if target.tflm:
        work.say(f"running {_SAMPLES} samples in TFLite Micro for target {target.name}")
        inputs = raw_inputs(tflite, _samples(work, tflite, model))
    figures, parameters = targets.cost_on(target, tflite, work.metrics, inputs)
    work.parameters |= parameters
    work.measure(figures)
    targets.require_within_limits(target, figures)


def _samples(work: ModelWork[EvaluateOptions], tflite: bytes, model: Model | None) -> Any:
    """The first test samples, in the order of the file's inputs."""
    from tfmot_ops.core.tflite.interpreter import input_names

    if model is not None:
        return work.first(work.data.x_test, _SAMPLES, model)
    columns = work.data.x_test
    named = isinstance(columns, Mapping)
    return [columns[name][:_SAMPLES] for name in input_names(tflite)] if named else columns[:_SAMPLES]
