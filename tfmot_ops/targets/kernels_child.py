"""The process that runs a TFLite file; its arguments name the files with the model, the inputs and the outputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

#: Memory for the tensors in TFLite Micro, in bytes, of which the file takes what it needs.
_LEAST_ARENA = 64 * 2**20


class _Kernels(Protocol):
    def __call__(self, sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for one sample, from a reset state."""

    def end(self) -> None:
        """Called after the last sample."""


class _Micro:
    """TFLite Micro's interpreter, which prints the sizes of its allocations at the end."""

    def __init__(self, data: bytes) -> None:
        from tflite_micro.python.tflite_micro import runtime

        self._interpreter = runtime.Interpreter.from_bytes(data, arena_size=_LEAST_ARENA + 10 * len(data))

    def __call__(self, sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._interpreter.reset()
        for place, values in enumerate(sample):
            self._interpreter.set_input(values, place)
        self._interpreter.invoke()
        found: list[np.ndarray] = []
        while True:  # the interpreter has no count of its outputs, and refuses an index that is too large
            try:
                found.append(np.array(self._interpreter.get_output(len(found))))
            except (IndexError, ValueError, RuntimeError):
                return found

    def end(self) -> None:
        self._interpreter.print_allocations()


class _Reference:
    """TFLite's interpreter with its reference kernels."""

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self._interpreter = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
        self._interpreter.allocate_tensors()

    def __call__(self, sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._interpreter.reset_all_variables()
        for detail, values in zip(self._interpreter.get_input_details(), sample, strict=True):
            self._interpreter.set_tensor(detail["index"], values)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._interpreter.get_output_details()]

    def end(self) -> None:
        pass


def main(kernels: str) -> None:
    """Run every sample by the kernels `tflm` or `reference`, and write the outputs."""
    model, inputs, outputs = (Path(argument) for argument in sys.argv[1:])
    kinds: dict[str, Any] = {"tflm": _Micro, "reference": _Reference}
    run: _Kernels = kinds[kernels](model.read_bytes())
    with np.load(inputs) as stored:
        columns = [stored[f"i{place}"] for place in range(len(stored.files))]
    rows = [run([column[index : index + 1] for column in columns]) for index in range(len(columns[0]))]
    joined = {f"o{place}": np.concatenate(parts) for place, parts in enumerate(zip(*rows, strict=True))}
    np.savez(outputs, **joined)  # type: ignore[arg-type] # its stub takes the names for flags
    run.end()
