"""Vela, Arm's compiler for Ethos-U: how much of a file runs on the NPU, and what it costs there."""

from __future__ import annotations

import csv
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tfmot_ops.contract import Vela
from tfmot_ops.errors import UnsupportedModelError
from tfmot_ops.targets.tool import Tool

VELA = Tool("Vela", "ethosu.vela", "import sys; from ethosu.vela.vela import main; sys.exit(main())")
_OPERATORS = re.compile(r"^(CPU|NPU) operators = (\d+)", re.MULTILINE)
#: The line of an operation on the CPU; export puts the layer's name behind `L.`.
_ON_CPU = re.compile(r"^\s+CPU: \w+ = (?:L\.)?([^/;]+)(?:/(\w+))?", re.MULTILINE)
_LINES_SHOWN = 3


@dataclass(frozen=True)
class Compiled:
    """What Vela says of a file.

    Attributes:
        npu_share: share of the operations that run on the NPU, in [0, 1].
        cpu_operations: each operation that does not run on the NPU, and the layer that it comes from.
        sram_bytes: SRAM for activations and buffers.
        flash_bytes: the file that Vela makes, with compressed weights.
        cycles: of the NPU, the memories included, for one inference.
        inference_ms: Vela's estimate for one inference in milliseconds.
    """

    npu_share: float
    cpu_operations: tuple[str, ...]
    sram_bytes: int
    flash_bytes: int
    cycles: float
    inference_ms: float


def compile_file(data: bytes, settings: Vela, target: str) -> Compiled:
    """Compile a file.

    Args:
        data: the file's bytes.
        settings: accelerator and memories.
        target: name of the target, for messages.

    Raises:
        UnsupportedModelError: Vela refuses the file or the settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "model.tflite"), Path(folder, "vela")
        file.write_bytes(data)
        code, printed = VELA.run([
            str(file),
            f"--accelerator-config={settings.accelerator}",
            f"--system-config={settings.system_config}",
            f"--memory-mode={settings.memory_mode}",
            "--config=Arm/vela.ini",
            "--show-cpu-operations",
            f"--output-dir={output}",
        ])  # fmt: skip
        summaries = sorted(output.glob("*_summary_*.csv"))
        operators = {place: int(count) for place, count in _OPERATORS.findall(printed)}
        if code or not summaries or set(operators) != {"CPU", "NPU"}:
            lines = [line.strip() for line in printed.splitlines() if line.strip()]
            raise UnsupportedModelError(
                f"target {target}: Vela does not compile the file",
                required=f"a file and settings that Vela takes for {settings.accelerator}",
                received="; ".join(lines[-_LINES_SHOWN:]) or f"its process ended with {code}",
                remedy="see whether the settings fit the accelerator, and whether the file is int8 throughout",
            )
        with summaries[0].open(encoding="utf-8", newline="") as table:
            row = next(csv.DictReader(table))
        flash = next(output.glob("*_vela.tflite")).stat().st_size
    return Compiled(
        npu_share=operators["NPU"] / max(1, sum(operators.values())),
        cpu_operations=tuple(
            f"{operation or 'an operation'} of {layer}" for layer, operation in _ON_CPU.findall(printed)
        ),
        sram_bytes=round(float(row["sram_memory_used"]) * 1024),
        flash_bytes=flash,
        cycles=float(row["cycles_total"]),
        inference_ms=float(row["inference_time"]) * 1000.0,
    )
