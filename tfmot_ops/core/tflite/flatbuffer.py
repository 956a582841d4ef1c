"""What several modules need of TFLite's flatbuffer schema: the names of operations, and the bytes of a changed file."""

from __future__ import annotations

from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

#: Code of a builtin TFLite operation -> its name (`CONV_2D`).
OP_NAMES: dict[int, str] = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def op_name(code: Any) -> str:
    """Name of a `schema.OperatorCodeT`; empty for a code that the schema does not have.

    Old converters wrote codes up to 127 into the deprecated field only.
    """
    return OP_NAMES.get(max(code.builtinCode, code.deprecatedBuiltinCode), "")


def file_bytes(model: Any, size: int = 1024) -> bytes:
    """The TFLite file of a `schema.ModelT`.

    Args:
        model: the unpacked file.
        size: expected size in bytes; the builder's buffer grows from it.
    """
    builder = flatbuffers.Builder(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    # `builder.Output()` would make a second copy.
    return bytes(memoryview(builder.Bytes)[builder.Head() :])
