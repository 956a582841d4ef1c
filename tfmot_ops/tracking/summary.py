"""The few figures of a whole chain that its parent run holds: each answers a question about the final file."""

from __future__ import annotations

from collections.abc import Mapping

from tfmot_ops.contract import ACCURACY, Headline

_FINAL_STEPS = ("quantize", "evaluate")
# Metric of the last of these steps -> its name on the parent run, beside those that are named after the headline.
_FINAL = {
    "pruning_drop": "pruning_drop",
    "quantization_drop": "quantization_drop",
    "compression": "compression",
    "sparsity": "final_sparsity",
    "size_bytes": "tflite_size_bytes",
    "gzip_bytes": "tflite_gzip_bytes",
    "arena_bytes": "tflite_arena_bytes",
    "int8_mac_fraction": "int8_mac_fraction",
    "latency_ms": "tflite_latency_ms",
    "worst_layer_sqnr_db": "worst_layer_sqnr_db",
}


def summary(steps: Mapping[str, Mapping[str, float]], headline: Headline | None = None) -> dict[str, float]:
    """The figures of a whole chain, for its parent run.

    Args:
        steps: step name -> its metrics, in the order of the chain.
        headline: the metric by which the task's models are compared; None takes accuracy.

    Returns:
        The final file's figures under plain names: `int8_accuracy`, `accuracy_drop`, `tflite_size_bytes`. Without a
        step that measures the file only `float_accuracy`, of a step `train`.
    """
    name = (headline or ACCURACY).name
    # The first one is what MLflow's page that compares runs draws first.
    wanted = {name: f"int8_{name}", **{each: each for each in (f"{name}_drop", f"float_{name}", f"pruned_{name}")}}
    wanted |= _FINAL
    found: dict[str, float] = {}
    # Only from steps that measure the final file: a chain that failed earlier has no int8 model.
    for metrics in (metrics for step, metrics in steps.items() if any(part in step for part in _FINAL_STEPS)):
        found |= {plain: metrics[each] for each, plain in wanted.items() if each in metrics}
    if name in steps.get("train", {}):
        found.setdefault(f"float_{name}", steps["train"][name])
    return {plain: found[plain] for plain in wanted.values() if plain in found}
