"""The bundle for a device: the file as C++ source, its operations, test vectors, figures, and how to use it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfmot_ops.contract import Target

if TYPE_CHECKING:
    import numpy.typing as npt

_BYTES_A_LINE = 16
#: TFLite operation -> name of the method of `MicroMutableOpResolver`, where it is not the operation's in CamelCase.
_METHODS = {"PADV2": "AddPadV2", "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM"}
#: TFLite Micro's arena in the bundle is larger than measured by this factor: other kernels need other scratch buffers.
_ARENA_MARGIN = 1.1
_ALIGNMENT = 16


@dataclass(frozen=True)
class Vectors:
    """Test vectors: inputs and the outputs of TFLite's reference kernels, as the numbers of the file's types.

    Attributes:
        inputs: one array [N, ...] per input.
        outputs: one array [N, ...] per output.
    """

    inputs: Sequence[npt.NDArray[Any]]
    outputs: Sequence[npt.NDArray[Any]]


def bundle(
    data: bytes, target: Target, operations: Sequence[str], figures: Mapping[str, float], vectors: Vectors
) -> dict[str, bytes]:
    """The files of a bundle: name -> content.

    Args:
        data: the TFLite file.
        target: the device.
        operations: names of the file's TFLite operations.
        figures: from `cost_on`.
        vectors: samples for a test on the device.
    """
    arena = _arena_bytes(figures)
    texts = {
        "model.h": _header(arena),
        "model.cc": _source(data),
        "op_resolver.h": _resolver(operations),
        "test_vectors.h": _vectors_header(vectors),
        "figures.json": json.dumps({"target": target.model_dump(mode="json", exclude_none=True), **figures}, indent=2),
        "README.md": _readme(target, operations, figures, vectors, arena),
    }
    found = {"model.tflite": data, "test_vectors.npz": _vectors_file(vectors)}
    found |= {name: text.rstrip("\n").encode() + b"\n" for name, text in texts.items()}
    sums = "".join(f"{hashlib.sha256(found[name]).hexdigest()}  {name}\n" for name in sorted(found))
    return found | {"SHA256SUMS": sums.encode()}


def _arena_bytes(figures: Mapping[str, float]) -> int:
    needed = figures.get("target_ram_bytes", 0.0) * _ARENA_MARGIN
    return (int(needed) // _ALIGNMENT + 1) * _ALIGNMENT


def _header(arena: int) -> str:
    return f"""#ifndef MODEL_H_
#define MODEL_H_
#include <cstddef>

// The TFLite file. TFLite Micro reads it where it is, so it stays in flash.
extern const unsigned char model_data[];
extern const size_t model_size;
// Bytes for the tensor arena: what TFLite Micro's reference kernels took, and a tenth more.
constexpr size_t kTensorArenaSize = {arena};
#endif  // MODEL_H_
"""


def _source(data: bytes) -> str:
    lines = [
        "  " + " ".join(f"0x{byte:02x}," for byte in data[start : start + _BYTES_A_LINE])
        for start in range(0, len(data), _BYTES_A_LINE)
    ]
    return "\n".join([
        '#include "model.h"',
        "",
        "// Flatbuffers are read at addresses that 16 divides.",
        "alignas(16) const unsigned char model_data[] = {",
        *lines,
        "};",
        "const size_t model_size = sizeof(model_data);",
    ])  # fmt: skip


def method_of(operation: str) -> str:
    """The method of TFLite Micro's `MicroMutableOpResolver` that adds an operation: `AddDepthwiseConv2D`."""
    words = (word if word[0].isdigit() else word.capitalize() for word in operation.split("_"))
    return _METHODS.get(operation, "Add" + "".join(words))


def _resolver(operations: Sequence[str]) -> str:
    lines = "\n".join(f"  if (resolver.{method_of(name)}() != kTfLiteOk) return kTfLiteError;" for name in operations)
    return f"""#ifndef OP_RESOLVER_H_
#define OP_RESOLVER_H_
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

// The operations of the model, and no other: what is not added is not linked.
constexpr int kOperations = {len(operations)};
inline TfLiteStatus AddOperations(tflite::MicroMutableOpResolver<kOperations>& resolver) {{
{lines}
  return kTfLiteOk;
}}
#endif  // OP_RESOLVER_H_
"""


def _vectors_header(vectors: Vectors) -> str:
    arrays = [(f"test_input_{place}", array) for place, array in enumerate(vectors.inputs)]
    arrays += [(f"test_output_{place}", array) for place, array in enumerate(vectors.outputs)]
    samples = len(vectors.inputs[0]) if vectors.inputs else 0
    parts = ["#ifndef TEST_VECTORS_H_", "#define TEST_VECTORS_H_", "#include <cstdint>", "",
             f"constexpr int kTestSamples = {samples};"]  # fmt: skip
    for name, array in arrays:
        kind = {"float32": "float", "float64": "double"}.get(array.dtype.name, f"{array.dtype.name}_t")
        rows = [", ".join(str(value) for value in row.reshape(-1).tolist()) for row in array]
        parts += [f"// [{', '.join(map(str, array.shape))}]",
                  f"static const {kind} {name}[][{max(1, array[0].size)}] = {{",
                  *(f"  {{{row}}}," for row in rows), "};"]  # fmt: skip
    return "\n".join([*parts, "#endif  // TEST_VECTORS_H_"])


def _vectors_file(vectors: Vectors) -> bytes:
    import numpy as np

    file = io.BytesIO()
    named = {f"input_{place}": array for place, array in enumerate(vectors.inputs)}
    named |= {f"output_{place}": array for place, array in enumerate(vectors.outputs)}
    np.savez(file, **named)  # type: ignore[arg-type] # its stub takes the names for flags
    return file.getvalue()


def _readme(
    target: Target, operations: Sequence[str], figures: Mapping[str, float], vectors: Vectors, arena: int
) -> str:
    rows = "\n".join(f"| {name} | {value:,.10g} |" for name, value in sorted(figures.items()))
    samples = len(vectors.inputs[0]) if vectors.inputs else 0
    return f"""# Model for {target.name}

{target.description}

| figure | value |
|---|---|
{rows}

## Files
- `model.tflite`: the model. `model.cc` and `model.h`: the same bytes as a C++ array, with an arena of {arena:,} bytes.
- `op_resolver.h`: its {len(operations)} operations for TFLite Micro ({", ".join(operations)}).
- `test_vectors.h`, `test_vectors.npz`: {samples} samples with the outputs of TFLite's reference kernels.
- `figures.json`: the target and the figures above. `SHA256SUMS`: `sha256sum -c SHA256SUMS` checks all files.

## On a microcontroller
```cpp
#include "model.h"
#include "op_resolver.h"
#include "tensorflow/lite/micro/micro_interpreter.h"

alignas(16) static uint8_t arena[kTensorArenaSize];
static tflite::MicroMutableOpResolver<kOperations> resolver;
AddOperations(resolver);
static tflite::MicroInterpreter interpreter(tflite::GetModel(model_data), resolver, arena, kTensorArenaSize);
interpreter.AllocateTensors();
```
Copy a row of `test_input_0` to `interpreter.input(0)`, invoke, and compare `interpreter.output(0)` with the same row of
`test_output_0`. Kernels that were optimised for a processor may differ by one level in a few values.

## On Android
```sh
adb push model.tflite /data/local/tmp
adb shell /data/local/tmp/benchmark_model --graph=/data/local/tmp/model.tflite --num_threads=1
```
"""
