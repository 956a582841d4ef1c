"""What a file costs on a target, by the target's tools, and whether it keeps to the target's operations and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfmot_ops.contract import Target
from tfmot_ops.errors import StepFailedError, UnsupportedModelError
from tfmot_ops.targets import kernels, vela

if TYPE_CHECKING:
    import numpy.typing as npt

#: Limit of a target -> (metric that it bounds, whether the metric may be at most, not at least, as large).
_LIMITS = {
    "flash_bytes": ("target_flash_bytes", True),
    "ram_bytes": ("target_ram_bytes", True),
    "npu_share": ("npu_share", False),
    "inference_ms": ("target_inference_ms", True),
}
_NAMES_SHOWN = 5


def require_tools(target: Target) -> None:
    """Refuse a target whose tools are not installed here.

    Raises:
        SpecError: a Python package is missing.
    """
    for tool in ([kernels.TFLM] if target.tflm else []) + ([vela.VELA] if target.vela else []):
        tool.require(target.name)


def require_operations(target: Target, operations: Mapping[str, Sequence[str]]) -> None:
    """Refuse a file with operations that the target does not have.

    Args:
        target: the device.
        operations: TFLite operation -> names of the layers that it computes.

    Raises:
        UnsupportedModelError: names each missing operation with its layers.
    """
    if target.operations is None:
        return
    missing = {name: layers for name, layers in operations.items() if name not in target.operations}
    if missing:
        found = "; ".join(
            f"{name} ({', '.join(layers[:_NAMES_SHOWN]) or 'between layers'})" for name, layers in missing.items()
        )
        raise UnsupportedModelError(
            f"target {target.name} lacks operations of the model",
            required=f"only operations that it has, {len(target.operations)} of TFLite's",
            received=found,
            remedy="replace these layers (a GELU by a swish or ReLU, for example), or take another target",
        )


def cost_on(
    target: Target,
    data: bytes,
    measured: Mapping[str, float],
    inputs: Sequence[npt.NDArray[Any]],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Find out what a file costs on the target.

    Args:
        target: the device.
        data: the file's bytes.
        measured: `size_bytes`, `arena_bytes` and `latency_ms` of the file under TFLite on this machine, which stand for
            a target without tools of its own.
        inputs: one array [N, ...] per input, of the file's types, for TFLite Micro.

    Returns:
        (metrics, parameters). Metrics: `target_flash_bytes`, `target_ram_bytes`, `target_inference_ms` (not for
        TFLite Micro, whose time on this machine says nothing), `npu_share` in [0, 1], `npu_cycles`,
        `tflm_equal_outputs` (share of output values equal to the reference's, in [0, 1]). Parameters: `target`, and
        `cpu_operations`, what Vela says of operations outside of the NPU.

    Raises:
        UnsupportedModelError: a tool refuses the file.
    """
    figures = {"target_flash_bytes": float(len(data)), "target_ram_bytes": measured.get("arena_bytes", float("nan"))}
    parameters: dict[str, Any] = {"target": target.name}
    if target.tflm:
        micro = kernels.run_tflm(data, inputs, target.name)
        figures["target_ram_bytes"] = float(micro.arena_bytes)
        figures["tflm_equal_outputs"] = equal_share(micro.outputs, kernels.run_reference(data, inputs, target.name))
    elif target.vela is None:
        figures["target_inference_ms"] = measured.get("latency_ms", float("nan"))
    if target.vela is not None:
        compiled = vela.compile_file(data, target.vela, target.name)
        figures |= {
            "target_flash_bytes": float(compiled.flash_bytes),
            "target_ram_bytes": float(compiled.sram_bytes),
            "target_inference_ms": compiled.inference_ms,
            "npu_share": compiled.npu_share,
            "npu_cycles": compiled.cycles,
        }
        parameters |= {"cpu_operations": list(compiled.cpu_operations)} if compiled.cpu_operations else {}
    return figures, parameters


def equal_share(outputs: Sequence[npt.NDArray[Any]], reference: Sequence[npt.NDArray[Any]]) -> float:
    """Share of values that are equal, in [0, 1]; 0 for outputs of other shapes."""
    pairs = list(zip(outputs, reference, strict=False))
    if len(outputs) != len(reference) or any(one.shape != other.shape for one, other in pairs):
        return 0.0
    return sum(int((one == other).sum()) for one, other in pairs) / max(1, sum(one.size for one in outputs))


def require_within_limits(target: Target, figures: Mapping[str, float]) -> None:
    """Refuse a file beyond the target's limits.

    Args:
        target: the device.
        figures: from `cost_on`.

    Raises:
        StepFailedError: names each limit, with the figure required and received.
    """
    problems = broken_limits(target, figures)
    if problems:
        raise StepFailedError(
            f"the file does not fit target {target.name}",
            required="; ".join(required for required, _ in problems),
            received="; ".join(received for _, received in problems),
            remedy="take a recipe with more zeros, or a smaller model; `tfmot-ops search` tries recipes in order",
        )


def broken_limits(target: Target, figures: Mapping[str, float]) -> list[tuple[str, str]]:
    """(required, received) of each limit that a file does not keep to; a figure that was not measured breaks it."""
    problems = []
    for name, (metric, at_most) in _LIMITS.items():
        limit = getattr(target.limits, name)
        if limit is None:
            continue
        figure = figures.get(metric)
        if figure is None or not (figure <= limit if at_most else figure >= limit):
            received = "not measured on this target" if figure is None else f"{figure:,.10g}"
            problems.append((f"{name} at {'most' if at_most else 'least'} {limit:,.10g}", f"{name} {received}"))
    return problems
