"""TFLite Micro: runs a file as a microcontroller does, for the memory that it needs and its exact outputs."""

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

TFLM = Tool("TFLite Micro", "tflite_micro", "from tfmot_ops.targets.tflm_child import main; main()")
_ARENA = re.compile(r"Arena allocation total (\d+) bytes")
_LINES_SHOWN = 3


@dataclass(frozen=True)
class MicroRun:
    """What TFLite Micro says of a file.

    Attributes:
        arena_bytes: memory for tensors and bookkeeping. Where pointers have 4 bytes, as on a Cortex-M, it is somewhat
            less than on this machine.
        outputs: one array [N, ...] an output, of the file's type.
    """

    arena_bytes: int
    outputs: list[npt.NDArray[Any]]


def run(data: bytes, inputs: Sequence[npt.NDArray[Any]], target: str) -> MicroRun:
    """Run a file in TFLite Micro, one sample after the other, each from a reset state.

    Args:
        data: the file's bytes.
        inputs: one array [N, ...] an input, of the file's types.
        target: name of the target, for messages.

    Raises:
        UnsupportedModelError: TFLite Micro lacks an operation, or cannot run one as the file has it.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("model.tflite", "inputs.npz", "outputs.npz")]
        paths[0].write_bytes(data)
        np.savez(paths[1], **{f"i{place}": array for place, array in enumerate(inputs)})  # type: ignore[arg-type] # its stub takes the names for flags
        code, printed = TFLM.run([str(path) for path in paths])
        found = _ARENA.search(printed)
        if code or found is None or not paths[2].exists():
            raise UnsupportedModelError(
                f"target {target}: TFLite Micro does not run the file",
                required="operations, types and shapes that TFLite Micro has",
                received="; ".join(_reasons(printed)) or f"its process ended with {code}",
                remedy="exclude the layer that has this operation, replace it in the model, or take another target",
            )
        with np.load(paths[2]) as stored:
            outputs = [stored[f"o{place}"] for place in range(len(stored.files))]
    return MicroRun(int(found[1]), outputs)


def _reasons(printed: str) -> list[str]:
    """The lines in which TFLite Micro says what is wrong, without Python's traceback."""
    lines = [line.strip() for line in printed.splitlines()]
    telling = [line for line in lines if line and not line.startswith(("File ", "Traceback", "[Recording", "^"))]
    return [line for line in telling if ".py" not in line][:_LINES_SHOWN]
