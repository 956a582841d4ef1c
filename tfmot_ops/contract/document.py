"""What every contract type shares, and the artifact they pass around."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1


class Document(BaseModel):
    """Base of every contract type: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactFormat(StrEnum):
    """What is inside an artifact."""

    KERAS_H5 = "keras_h5"
    TFLITE = "tflite"
    JSON = "json"
    HTML = "html"
    CSV = "csv"


class Artifact(Document):
    """One file in the artifact store; sha256 (hex) is recorded when written and verified when read."""

    uri: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    format: ArtifactFormat
