"""The base class of all documents, and Artifact, the reference to a file in the artifact store."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1


#: A name that is used as a file or folder name: without a slash, and without a dot at its start.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]*$", max_length=200)]
#: Relative path of a file: no part of it begins with a dot, so that it cannot leave its folder.
_PART = r"[^/.\\\x00-\x1f][^/\\\x00-\x1f]*"
PathBelow = Annotated[str, Field(pattern=f"^{_PART}(/{_PART})*$", max_length=400)]


def later(default: Any = None, **more: Any) -> Any:
    """A field that version 1 got later: it is left out where it has its default, so that earlier releases read it too.

    A step's image may be of an earlier release than the scheduler's side.
    """
    return Field(default=default, exclude_if=lambda value: value == default, **more)


class Document(BaseModel):
    """Base of every contract type: immutable, and strict about unknown fields."""

    # pydantic's own message would quote values, which may contain secrets in URIs; `refusal` writes a safe message.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ArtifactFormat(StrEnum):
    """What is inside an artifact."""

    KERAS_H5 = "keras_h5"
    TFLITE = "tflite"
    JSON = "json"
    HTML = "html"
    CSV = "csv"
    PNG = "png"


class Artifact(Document):
    """One file in the artifact store; sha256 (hex) is recorded when written and verified when read."""

    uri: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    format: ArtifactFormat
