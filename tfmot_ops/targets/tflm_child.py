"""The process that runs a TFLite file in TFLite Micro: model, inputs and outputs are files named by its arguments."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

#: Memory for the tensors, in bytes, of which the file takes what it needs.
_LEAST_ARENA = 64 * 2**20


def main() -> None:
    """Run every sample, write the outputs, and print the sizes of the allocations on stderr."""
    from tflite_micro.python.tflite_micro import runtime

    model, inputs, outputs = (Path(argument) for argument in sys.argv[1:])
    data = model.read_bytes()
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=_LEAST_ARENA + 10 * len(data))
    with np.load(inputs) as stored:
        columns = [stored[f"i{place}"] for place in range(len(stored.files))]
    rows = []
    for index in range(len(columns[0])):
        interpreter.reset()
        for place, column in enumerate(columns):
            interpreter.set_input(column[index : index + 1], place)
        interpreter.invoke()
        rows.append(_outputs(interpreter))
    joined = {f"o{place}": np.concatenate(parts) for place, parts in enumerate(zip(*rows, strict=True))}
    np.savez(outputs, **joined)  # type: ignore[arg-type] # its stub takes the names for flags
    interpreter.print_allocations()


def _outputs(interpreter: object) -> list[np.ndarray]:
    """A copy of each output; the interpreter has no count of them, and refuses an index that is too large."""
    found: list[np.ndarray] = []
    while True:
        try:
            found.append(np.array(interpreter.get_output(len(found))))  # type: ignore[attr-defined] # tflite_micro has no types
        except (IndexError, ValueError, RuntimeError):
            return found
