"""A file run by TFLite Micro, as a microcontroller does, and by TFLite's reference kernels, which it should equal.

Both run in a process of their own: their C++ code ends the process where a number in a file is out of its range.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmot_ops.errors import UnsupportedModelError
from tfmot_ops.targets.tool import Tool

if TYPE_CHECKING:
    import numpy.typing as npt

_CHILD = "from tfmot_ops.targets.kernels_child import main; main('{}')"
TFLM = Tool("TFLite Micro", "tflite_micro", _CHILD.format("tflm"))
REFERENCE = Tool("TFLite's reference kernels", "ai_edge_litert", _CHILD.format("reference"))
_ARENA = re.compile(r"Arena allocation total (\d+) bytes")
_LINES_SHOWN = 3


@dataclass(frozen=True)
class MicroRun:
    """What TFLite Micro says of a file.

    Attributes:
        arena_bytes: memory for tensors and bookkeeping. Where pointers have 4 bytes, as on a Cortex-M, it is somewhat
            less than on this machine.
        outputs: one array [N, ...] per output, of the file's type.
    """

    arena_bytes: int
    outputs: list[npt.NDArray[Any]]


def run_tflm(data: bytes, inputs: Sequence[npt.NDArray[Any]], target: str) -> MicroRun:
    """Run a file in TFLite Micro, one sample after the other, each from a reset state.

    Args:
        data: the file's bytes.
        inputs: one array [N, ...] per input, of the file's types.
        target: name of the target, for messages.

    Raises:
        UnsupportedModelError: TFLite Micro lacks an operation, or cannot run one as the file has it.
    """
    outputs, printed = _run(TFLM, data, inputs, target)
    found = _ARENA.search(printed)
    return MicroRun(int(found[1]) if found else 0, outputs)


def run_reference(data: bytes, inputs: Sequence[npt.NDArray[Any]], target: str) -> list[npt.NDArray[Any]]:
    """Outputs of TFLite's reference kernels (`BUILTIN_REF`), one array [N, ...] per output; see `run_tflm`.

    Raises:
        UnsupportedModelError: the kernels cannot run an operation as the file has it.
    """
    return _run(REFERENCE, data, inputs, target)[0]


def _run(
    tool: Tool, data: bytes, inputs: Sequence[npt.NDArray[Any]], target: str
) -> tuple[list[npt.NDArray[Any]], str]:
    """(outputs, everything that the child process printed)."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("model.tflite", "inputs.npz", "outputs.npz")]
        paths[0].write_bytes(data)
        np.savez(paths[1], **{f"i{place}": array for place, array in enumerate(inputs)})  # type: ignore[arg-type] # its stub takes the names for flags
        code, printed = tool.run([str(path) for path in paths])
        if code or not paths[2].exists():
            raise UnsupportedModelError(
                f"target {target}: {tool.name} cannot run the file",
                required="operations, types, shapes and ranges that the kernels take",
                received="; ".join(_reasons(printed)) or f"the process ended with {code}, without a message",
                remedy="exclude the layer that has this operation, or replace it in the model; train a model whose "
                "outputs hardly differ yet; or take another target",
            )
        with np.load(paths[2]) as stored:
            return [stored[f"o{place}"] for place in range(len(stored.files))], printed


def _reasons(printed: str) -> list[str]:
    """The lines in which the kernels say what is wrong, without Python's traceback."""
    lines = [line.strip() for line in printed.splitlines()]
    messages = [line for line in lines if line and not line.startswith(("File ", "Traceback", "[Recording", "^"))]
    return [line for line in messages if ".py" not in line][:_LINES_SHOWN]
