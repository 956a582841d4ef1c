"""Recipes: what to do to a model. They need no TensorFlow, so a DAG's form can offer them."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from tfmot_ops.contract.document import SCHEMA_VERSION, Document

#: Recipes that ship by name; `tfmot_ops.recipes` decodes each.
PRESET_RECIPES = ("wi8_ai8", "sparse50_wi8_ai8", "sparse80_wi8_ai8", "sparse2of4_wi8_ai8", "wi8_afp32")


class Scope(Document):
    """Which layers a part of a recipe concerns.

    A selector is a layer's path (`block_1/conv`), a glob on it (`block_*`), or `class:<Name>`. An empty
    `include` means every layer the part can handle by default. A selector that matches nothing is an
    error, so a renamed layer is never silently skipped.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Schedule(StrEnum):
    """How the sparsity reaches its target during training."""

    CONSTANT = "constant"
    POLYNOMIAL = "polynomial"


class Sparsity(Document):
    """Magnitude pruning: how many weights become zero, in which pattern, and when.

    Attributes:
        ratio: fraction of zeros in each pruned kernel. For `n_of_m` it must equal n / m.
        n_of_m: (zeros, group): so many zeros in each group of consecutive input channels; (2, 4) is what
            sparse tensor cores read.
        block: (rows, columns) of the blocks that are zeroed as one, for rank-2 kernels.
        schedule: `polynomial` grows the sparsity from `initial_ratio` along a cubic (Zhu & Gupta 2017,
            arXiv:1710.01878), `constant` applies the target at once.
        initial_ratio: sparsity at the first step of the polynomial schedule.
        ramp_fraction: share of the training steps after which the target is reached; the rest recovers.
        scope: which layers.
    """

    ratio: float = Field(gt=0.0, lt=1.0)
    n_of_m: tuple[int, int] | None = None
    block: tuple[int, int] | None = None
    schedule: Schedule = Schedule.POLYNOMIAL
    initial_ratio: float = Field(default=0.0, ge=0.0, lt=1.0)
    ramp_fraction: float = Field(default=0.5, gt=0.0, le=1.0)
    scope: Scope = Scope()

    @model_validator(mode="after")
    def _patterns_agree(self) -> Sparsity:
        if self.n_of_m and self.block:
            raise ValueError("n_of_m and block exclude each other; remove one")
        if self.n_of_m:
            zeros, group = self.n_of_m
            if not 0 < zeros < group:
                raise ValueError(f"n_of_m needs 0 < n < m, received {zeros} of {group}")
            if abs(self.ratio - zeros / group) > 1e-9:  # noqa: PLR2004 - rounding of one division
                raise ValueError(f"ratio must be {zeros / group} for {zeros} of {group}, received {self.ratio}")
        if self.initial_ratio >= self.ratio:
            raise ValueError(f"initial_ratio must be below ratio {self.ratio}, received {self.initial_ratio}")
        return self


class Weights(StrEnum):
    """Numeric type of the weights in the TFLite file."""

    INT8 = "int8"
    FLOAT16 = "float16"


class Activations(StrEnum):
    """Numeric type of the activations in the TFLite file."""

    INT8 = "int8"
    INT16 = "int16"
    FLOAT32 = "float32"


class Method(StrEnum):
    """Quantisation-aware training, or post-training quantisation from calibration data alone."""

    QAT = "qat"
    PTQ = "ptq"


class Backend(StrEnum):
    """Who quantises after training: the TFLite converter, or Google's AI Edge Quantizer on the float file."""

    CONVERTER = "converter"
    AI_EDGE_QUANTIZER = "ai_edge_quantizer"


class Quantization(Document):
    """Numeric types and how to get there.

    Attributes:
        backend: for PTQ only; QAT is always the converter's, as the ranges are in the graph.
        calibration_samples: samples the activation ranges are read from before QAT, or for PTQ.
        keep_clusters: for QAT only; weights of a kernel that are equal stay equal in training and in the file, as many
            as a model clustered by tfmot has of them. Such kernels are rounded with one scale for all channels.
        scope: layers that get quantisers; the others stay in float and are reported so.
    """

    weights: Weights = Weights.INT8
    activations: Activations = Activations.INT8
    method: Method = Method.QAT
    backend: Backend = Backend.CONVERTER
    calibration_samples: int = Field(default=512, ge=1)
    keep_clusters: bool = False
    scope: Scope = Scope()

    @model_validator(mode="after")
    def _clusters_are_trained(self) -> Quantization:
        if self.keep_clusters and self.method is not Method.QAT:
            raise ValueError(f"keep_clusters is for method qat, received {self.method}")
        return self

    @model_validator(mode="after")
    def _types_agree(self) -> Quantization:
        if self.weights is Weights.FLOAT16 and self.activations is not Activations.FLOAT32:
            raise ValueError(f"float16 weights go with float32 activations, received {self.activations}")
        if self.method is Method.QAT and (self.weights, self.activations) != (Weights.INT8, Activations.INT8):
            raise ValueError(
                f"qat trains int8 weights with int8 activations, received {self.weights} with {self.activations}; "
                "use method: ptq"
            )
        if self.backend is Backend.AI_EDGE_QUANTIZER and self.method is not Method.PTQ:
            raise ValueError(
                f"backend {self.backend} quantises after training, received {self.method}; use method: ptq"
            )
        if self.backend is Backend.AI_EDGE_QUANTIZER and self.weights is not Weights.INT8:
            raise ValueError(f"backend {self.backend} makes int8 weights, received {self.weights}; use the converter")
        return self


class Budget(Document):
    """How much training the recipe may spend.

    Attributes:
        fine_tune_epochs: epochs with the pruning schedule; a recipe without sparsity has none, and does not use it.
        qat_epochs: epochs with the quantisers in place.
        fine_tune_learning_rate: None keeps the rate the model was compiled with.
        qat_learning_rate: None takes a tenth of the compiled rate, as the weights only have to settle.
    """

    fine_tune_epochs: int = Field(default=4, ge=0)
    qat_epochs: int = Field(default=2, ge=0)
    fine_tune_learning_rate: float | None = Field(default=None, gt=0.0)
    qat_learning_rate: float | None = Field(default=None, gt=0.0)


class Recipe(Document):
    """Immutable description of how to optimise a model: sparsity, quantisation, scopes, budget.

    Written as one file, YAML or JSON, or as a name (see `core.recipes`).
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    sparsity: Sparsity | None = None
    quantization: Quantization | None = None
    budget: Budget = Budget()
