"""The exception tree; each class owns the exit code of `tfmot-ops run`.

TfmotOpsError                 1   a bug: anything we did not foresee
├── SpecError                 2   the request is wrong: spec, recipe, scope, name; never retried
│   ├── RecipeError               a recipe that cannot be read or decoded
│   ├── ScopeError                a scope that matches no layer
│   └── LegacyKerasError          Keras 3 is loaded instead of tf_keras
├── UnsupportedModelError     3   the model cannot be handled; never retried
└── StepFailedError           4   the step could not do its work; a retry may help
    ├── ArtifactError             an artifact is missing or its sha256 differs
    │   └── UnsafeModelError  3       a model file that could run code; never retried
    ├── SparsityLostError         a layer no longer holds the sparsity of its recipe
    ├── SamplesError              samples or labels that do not fit the model
    │   └── CalibrationError          calibration samples that do not fit the model
    ├── NotFiniteError            a weight, or the range of a quantiser, is NaN or infinite
    ├── ExportError               the TFLite file is not what the recipe asks for
    └── CompatError               a cell of the compat matrix does not hold what it has to

Every message says what was required, what was received, and what to do: build it with the three
keyword arguments, so that none is forgotten. No message holds the secret of a URI, whoever wrote that URI into it.
"""

from __future__ import annotations

from typing import ClassVar

from tfmot_ops.system.uri_secrets import hide

#: Longest part of a message, in characters; what is longer is cut.
_LONGEST = 8000


class TfmotOpsError(Exception):
    """Base of all errors of this package.

    Args:
        summary: what went wrong, in one clause.
        required: what would have been right.
        received: what was there instead.
        remedy: what the reader should do now.
    """

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
        super().__init__("\n".join(parts))


def _shown(text: str) -> str:
    # Secrets go first: a URI that is cut in the middle is not recognised as one.
    text = hide(text[: 10 * _LONGEST])
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


class SpecError(TfmotOpsError):
    """The request is wrong; the same request can never succeed."""

    exit_code = 2


class RecipeError(SpecError):
    """A recipe that cannot be read, decoded or validated."""


class ScopeError(SpecError):
    """A scope selector that matches no layer of the model."""


class LegacyKerasError(SpecError):
    """Keras 3 is loaded where tf_keras has to be."""


class UnsupportedModelError(TfmotOpsError):
    """The model, or a layer of it, cannot be handled; the message names the layer."""

    exit_code = 3


class StepFailedError(TfmotOpsError):
    """The step could not do its work."""

    exit_code = 4


class ArtifactError(StepFailedError):
    """An artifact is missing, unreadable, or not the one that was recorded."""


class UnsafeModelError(ArtifactError):
    """A model file that could run code, reach other files, or take far more memory than it has bytes."""

    exit_code = 3


class SparsityLostError(StepFailedError):
    """A pruned layer no longer holds the sparsity of its recipe."""


class SamplesError(StepFailedError):
    """Samples do not fit the inputs of a model or a TFLite file, or labels do not fit the samples."""


class CalibrationError(SamplesError):
    """The calibration samples do not fit the model's inputs."""


class NotFiniteError(StepFailedError):
    """A weight of a model, or the range of a quantiser, is NaN or infinite; the layer is named."""


class ExportError(StepFailedError):
    """The converter refused the model, or its file is not what the recipe asks for."""


class CompatError(StepFailedError):
    """An architecture came through a stage, but not as it has to: changed outputs, float operations."""
