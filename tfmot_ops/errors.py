"""The exception tree; each class owns a code that never changes, and the exit code of `tfmot-ops run`.

TfmotOpsError                 TFO-100  1  a bug: anything we did not foresee
├── SpecError                 TFO-200  2  the request is wrong: spec, recipe, scope, name; never retried
│   ├── RecipeError           TFO-201     a recipe that cannot be read or decoded
│   ├── ScopeError            TFO-202     a scope that matches no layer
│   └── LegacyKerasError      TFO-203     Keras 3 is loaded instead of tf_keras
├── UnsupportedModelError     TFO-300  3  the model cannot be handled; never retried
└── StepFailedError           TFO-400  4  the step could not do its work; a retry may help
    ├── ArtifactError         TFO-401     an artifact is missing or its sha256 differs
    │   └── UnsafeModelError  TFO-301  3  a model file that could run code; never retried
    ├── SparsityLostError     TFO-402     a layer no longer holds the sparsity of its recipe
    ├── SamplesError          TFO-403     samples or labels that do not fit the model
    │   └── CalibrationError  TFO-404     calibration samples that do not fit the model
    ├── NotFiniteError        TFO-405     a weight, or the range of a quantiser, is NaN or infinite
    ├── ExportError           TFO-406     the TFLite file is not what the recipe asks for
    └── CompatError           TFO-407     a cell of the compat matrix does not hold what it has to

The first digit of a code is the exit code. `docs/troubleshooting.md` has what to do, code by code.

Every message says what was required, what was received, and what to do: build it with the three
keyword arguments, so that none is forgotten. No message holds the secret of a URI, whoever wrote that URI into it.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from tfmot_ops.system.uri_secrets import hide

#: Longest part of a message, in characters; what is longer is cut.
_LONGEST = 8000
#: The line of a message with its code.
_CODE_LINE: Final = re.compile(r"^  code:     TFO-\d{3}\b", re.MULTILINE)


class TfmotOpsError(Exception):
    """Base of all errors of this package; raised itself for a bug, and for a step that was killed by a signal.

    Args:
        summary: what went wrong, in one clause.
        required: what would have been right.
        received: what was there instead.
        remedy: what the reader should do now.

    Attributes:
        code: never changes and is never used again, so that people can search for it; its first digit is `exit_code`.
        exit_code: of the command that ends with this error.
    """

    code: ClassVar[str] = "TFO-100"
    exit_code: ClassVar[int] = 1

    def __init__(self, summary: str, *, required: str = "", received: str = "", remedy: str = "") -> None:
        self.summary = _shown(summary)
        self.required = _shown(required)
        self.received = _shown(received)
        self.remedy = _shown(remedy)
        parts = [self.summary]
        parts += [f"  required: {self.required}"] if required else []
        parts += [f"  received: {self.received}"] if received else []
        parts += [f"  remedy:   {self.remedy}"] if remedy else []
        # The summary may quote the message of a step's error, which ends with the code of that error.
        parts += [] if _CODE_LINE.search(self.summary) else [f"  code:     {self.code}, see docs/troubleshooting.md"]
        super().__init__("\n".join(parts))


def _shown(text: str) -> str:
    # Secrets go first: a URI that is cut in the middle is not recognised as one.
    text = hide(text[: 10 * _LONGEST])
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


class SpecError(TfmotOpsError):
    """The request is wrong; the same request can never succeed."""

    code = "TFO-200"
    exit_code = 2


class RecipeError(SpecError):
    """A recipe that cannot be read, decoded or validated."""

    code = "TFO-201"


class ScopeError(SpecError):
    """A scope selector that matches no layer of the model."""

    code = "TFO-202"


class LegacyKerasError(SpecError):
    """Keras 3 is loaded where tf_keras has to be."""

    code = "TFO-203"


class UnsupportedModelError(TfmotOpsError):
    """The model, or a layer of it, cannot be handled; the message names the layer."""

    code = "TFO-300"
    exit_code = 3


class StepFailedError(TfmotOpsError):
    """The step could not do its work."""

    code = "TFO-400"
    exit_code = 4


class ArtifactError(StepFailedError):
    """An artifact is missing, unreadable, or not the one that was recorded."""

    code = "TFO-401"


class UnsafeModelError(ArtifactError):
    """A model file that could run code, reach other files, or take far more memory than it has bytes."""

    code = "TFO-301"
    exit_code = 3


class SparsityLostError(StepFailedError):
    """A pruned layer no longer holds the sparsity of its recipe."""

    code = "TFO-402"


class SamplesError(StepFailedError):
    """Samples do not fit the inputs of a model or a TFLite file, or labels do not fit the samples."""

    code = "TFO-403"


class CalibrationError(SamplesError):
    """The calibration samples do not fit the model's inputs."""

    code = "TFO-404"


class NotFiniteError(StepFailedError):
    """A weight of a model, or the range of a quantiser, is NaN or infinite; the layer is named."""

    code = "TFO-405"


class ExportError(StepFailedError):
    """The converter refused the model, or its file is not what the recipe asks for."""

    code = "TFO-406"


class CompatError(StepFailedError):
    """An architecture came through a stage, but not as it has to: changed outputs, float operations."""

    code = "TFO-407"
