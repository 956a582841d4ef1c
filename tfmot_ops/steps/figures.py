"""Metrics of the evaluate step: drop of the headline, latency, memory, sparse encoding, and noise (SQNR) by layer."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from tfmot_ops.contract import ArtifactFormat, EvaluateOptions, Method
from tfmot_ops.steps.scoring import score
from tfmot_ops.steps.work import FLOAT, ModelWork
from tfmot_ops.tasks.in_order import in_order

if TYPE_CHECKING:
    from tfmot_ops.core.keras.types import Model

#: Number of test samples on which the SQNR of each layer is measured.
_SAMPLES = 64


def measure_drop(work: ModelWork[EvaluateOptions], tflite: bytes, model: Model | None) -> None:
    """Measure how much worse the file is than the float model in the task's headline metric, and its compression.

    The drop has the metric's unit and is positive where the file is worse, whatever the metric's direction.

    The reference is the input `trained`. Without that input the reference is `model`, and the parameter
    `float_reference` and a progress message name it. If the recipe prunes, `model` is already pruned, so the drop does
    not include the loss from pruning. With both inputs, `pruning_drop` (`trained` to `model`) and `quantization_drop`
    (`model` to file) add up to `<headline>_drop`.

    Args:
        work: the step, which has measured the file's metrics already.
        tflite: the file's bytes.
        model: the input `model`; None without that input.
    """
    from tfmot_ops import core

    trained = core.load_model(work.path("trained")) if "trained" in work.spec.inputs else None
    reference = model if trained is None else trained
    if reference is None:
        return
    work.parameters["float_reference"] = "model" if trained is None else "trained"
    if trained is None:
        work.progress.message(
            f"evaluate: {work.headline.name}_drop and compression are against the input `model`, as there is no input "
            "`trained`"
        )
    headline = work.headline
    name = headline.name
    float_value = _headline_of(work, reference)
    float_size = len(core.export_tflite(core.strip(reference), FLOAT))
    work.measure(
        {
            f"float_{name}": float_value,
            f"{name}_drop": headline.drop(float_value, work.metrics.get(name, math.nan)),
            "float_size_bytes": float_size,
            "compression": float_size / len(tflite),
        }
    )
    if trained is not None and model is not None and _prunes(work):
        pruned_value = _headline_of(work, model)
        work.measure(
            {
                f"pruned_{name}": pruned_value,
                "pruning_drop": headline.drop(float_value, pruned_value),
                "quantization_drop": headline.drop(pruned_value, work.metrics.get(name, math.nan)),
            }
        )


def _headline_of(work: ModelWork[EvaluateOptions], model: Model) -> float:
    return score(work.data, "test", model).metrics().get(work.headline.name, math.nan)


def measure_agreement(work: ModelWork[EvaluateOptions], model: Model, tflite: bytes) -> None:
    """Measure the SQNR of the file's outputs in dB, and for classes the share of samples with the same class."""
    from tfmot_ops import core

    figures = core.agreement(model, tflite, in_order(work.data.x_test, list(model.input_names), "input"))
    if not work.data.task.predicts_classes:
        figures.pop("top1_agreement", None)
    work.measure(figures)


def _prunes(work: ModelWork[EvaluateOptions]) -> bool:
    return work.options.recipe is not None and work.recipe.sparsity is not None


def measure_run(work: ModelWork[EvaluateOptions], tflite: bytes) -> None:
    """Measure latency in ms (median, p10, p90; XNNPACK with one thread and with all) and TFLite's arena in bytes."""
    from tfmot_ops import core

    for name, threads in (("latency", 1), ("latency_all_threads", os.cpu_count() or 1)):
        latency = core.latency_ms(tflite, threads)
        work.measure({f"{name}_ms": latency.median, f"{name}_p10_ms": latency.p10, f"{name}_p90_ms": latency.p90})
    work.parameters["latency_all_threads"] = os.cpu_count() or 1
    work.measure({"arena_bytes": core.arena_bytes(tflite)})


def measure_sparse_encoding(work: ModelWork[EvaluateOptions], tflite: bytes) -> None:
    """Measure a pruned file in TFLite's sparse encoding: sizes in bytes, latency in ms, and whether XNNPACK runs it."""
    from tfmot_ops import core

    found = core.compare_sparse_encoding(tflite)
    work.measure(
        {
            "sparse_encoding_size_bytes": found.sparse.size_bytes,
            "sparse_encoding_gzip_bytes": found.sparse.gzip_bytes,
            "latency_sparse_encoding_ms": math.nan if found.sparse.xnnpack is None else found.sparse.xnnpack.median,
        }
    )
    verdict = "runs with XNNPACK" if found.sparse.xnnpack else f"refused with XNNPACK: {found.sparse.refusal}"
    work.parameters["sparse_encoding"] = verdict


def measure_layers(work: ModelWork[EvaluateOptions], model: Model, tflite: bytes) -> None:
    """Write the SQNR of each layer to the output `layer_sqnr` (CSV), and record the layer with the lowest SQNR in dB.

    Args:
        work: the step; its input `quantized`, if given, is the QAT model.
        model: stripped float model.
        tflite: the file's bytes.
    """
    from tfmot_ops import core

    quantized = None
    if "quantized" in work.spec.inputs and _is_qat(work):
        quantized = core.load_model(work.path("quantized"))
    rows = core.layer_sqnr(model, quantized, tflite, work.first(work.data.x_test, _SAMPLES, model))
    work.put_bytes(core.layer_sqnr_csv(rows).encode(), "layer_sqnr", ArtifactFormat.CSV)
    figures = {row.path: row.float_to_tflite_db for row in rows if row.float_to_tflite_db is not None}
    if figures:
        worst = min(figures, key=figures.__getitem__)
        work.measure({"worst_layer_sqnr_db": figures[worst]})
        work.parameters["worst_layer"] = worst


def _is_qat(work: ModelWork[EvaluateOptions]) -> bool:
    quantization = work.recipe.quantization if work.options.recipe is not None else None
    return quantization is not None and quantization.method is Method.QAT
