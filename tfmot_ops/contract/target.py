"""Targets: what a device takes, and which limits a file has to keep to. Loads no TensorFlow."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tfmot_ops.contract.document import SCHEMA_VERSION, Document

#: Names of the targets that ship; each is a YAML file of `tfmot_ops.targets.profiles`.
SHIPPED_TARGETS = ("litert_cpu", "cortex_m", "ethos_u55_128", "ethos_u65_256", "ethos_u85_256", "per_tensor_npu")
_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def bytes_of(value: Any) -> Any:
    """Bytes of a size such as `256k`, where k is 1024 and M is 1024 * 1024 bytes; other values stay as they are.

    Raises:
        ValueError: the text is no size.
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]+)\s*([kKmM]?)(i?[bB])?", value.strip())
    if found is None:
        raise ValueError(
            f"a number of bytes, or of units of 1024 (k) or 1024 * 1024 (M), such as 256k; received {value!r}"
        )
    return int(found[1]) * _UNITS[found[2].lower()]


Bytes = Annotated[int, BeforeValidator(bytes_of), Field(ge=1)]


class IoType(StrEnum):
    """Numeric type of a file's inputs or outputs."""

    INT8 = "int8"
    UINT8 = "uint8"
    FLOAT32 = "float32"


class WeightScales(StrEnum):
    """How many scales an int8 kernel has: one for each output channel, or one for the whole kernel."""

    PER_CHANNEL = "per_channel"
    PER_TENSOR = "per_tensor"


class Vela(Document):
    """Settings of Vela, Arm's compiler for Ethos-U; `vela --help` and its `vela.ini` list the names.

    Attributes:
        accelerator: NPU and its multiply-accumulates per cycle, as `ethos-u55-128`.
        system_config: clock and bandwidths of the memories.
        memory_mode: which memory holds weights and activations.
    """

    accelerator: str = Field(pattern=r"^ethos-u[0-9]+-[0-9]+$")
    system_config: str = Field(pattern=r"^\w+$")
    memory_mode: str = Field(pattern=r"^\w+$")


class Limits(Document):
    """What a file may cost on the device; None sets no limit.

    Attributes:
        flash_bytes: largest size of the file on the device: of the TFLite file, or of the file that Vela makes of it.
        ram_bytes: largest memory for activations: TFLite Micro's arena, the SRAM that Vela plans, or TFLite's arena.
        npu_share: lowest share of operations that run on the NPU, in [0, 1].
        inference_ms: longest inference in milliseconds: Vela's estimate, or measured with one thread on this machine.
    """

    flash_bytes: Bytes | None = None
    ram_bytes: Bytes | None = None
    npu_share: float | None = Field(default=None, ge=0.0, le=1.0)
    inference_ms: float | None = Field(default=None, gt=0.0)


class Target(Document):
    """What a device takes, and how the cost of a file on it is found.

    Attributes:
        name: name of the target.
        description: the device, in one line.
        input_type: numeric type of the file's float inputs; None takes the recipe's, which is int8 for int8
            activations.
        output_type: numeric type of the file's outputs; None as for `input_type`.
        weight_scales: how many scales an int8 kernel has; QAT trains for it.
        operations: names of the TFLite operations that the device has; None for all.
        tflm: run the file in TFLite Micro, for its arena and the equality of its outputs with the reference kernels.
        vela: compile the file with Vela, for the NPU's share, memory, cycles; None for a device without Ethos-U.
        limits: limits that a file must keep to.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    description: str = Field(default="", max_length=300)
    input_type: IoType | None = None
    output_type: IoType | None = None
    weight_scales: WeightScales = WeightScales.PER_CHANNEL
    operations: tuple[Annotated[str, Field(pattern=r"^[A-Z0-9_]+$")], ...] | None = None
    tflm: bool = False
    vela: Vela | None = None
    limits: Limits = Limits()


TargetRef = Target | str
