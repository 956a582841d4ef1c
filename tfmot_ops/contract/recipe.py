"""Recipes: how to prune and quantise a model. Loads no TensorFlow, so that a DAG's form can list the recipes."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from tfmot_ops.contract.document import SCHEMA_VERSION, Document, later
from tfmot_ops.contract.scope import Scope
from tfmot_ops.contract.target import IoType, TargetRef, WeightScales
from tfmot_ops.contract.training import TrainingPlan

#: Names of the built-in recipes; `tfmot_ops.recipes` decodes a name.
PRESET_RECIPES = ("wi8_ai8", "sparse50_wi8_ai8", "sparse80_wi8_ai8", "sparse2of4_wi8_ai8", "wi8_afp32")


class Schedule(StrEnum):
    """How the sparsity reaches its target during training."""

    CONSTANT = "constant"
    POLYNOMIAL = "polynomial"


class Sparsity(Document):
    """Magnitude pruning: how many weights become zero, in which pattern, and when.

    Attributes:
        ratio: fraction of zeros in each pruned kernel. For `n_of_m` it must equal n / m.
        n_of_m: (zeros, group): number of zeros in each group of consecutive input channels; (2, 4) is the pattern that
            NVIDIA's sparse tensor cores support.
        block: (rows, columns) of the blocks in which weights become zero together, for rank-2 kernels.
        schedule: `polynomial` grows the sparsity from `initial_ratio` along a cubic (Zhu & Gupta 2017,
            arXiv:1710.01878), `constant` applies the target at once.
        initial_ratio: sparsity at the first step of the polynomial schedule.
        ramp_fraction: share of the training steps after which the target is reached; in the remaining steps the model
            recovers accuracy.
        scope: the layers to prune.
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

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a kernel of this shape can take the pattern.

        n of m needs a number of input channels, the last axis but one, that m divides. Blocks need a kernel of rank 2
        with more than one block along each axis, as tfmot squeezes axes of size 1 out of its map of blocks.
        """
        if self.block is not None:
            return len(shape) == 2 and all(size > block for size, block in zip(shape, self.block, strict=True))  # noqa: PLR2004
        return self.n_of_m is None or (len(shape) in {2, 4} and shape[-2] % self.n_of_m[1] == 0)


class Channels(Document):
    """Channel pruning: whole filters are removed before the rest of the recipe, so that the model itself is smaller.

    Attributes:
        macs: largest share of the multiplications (MACs) that stays.
        scope: the layers whose filters may be removed.
    """

    macs: float = Field(gt=0.0, lt=1.0)
    scope: Scope = Scope()


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
    """Quantisation-aware training (QAT), or post-training quantisation (PTQ) with calibration samples only."""

    QAT = "qat"
    PTQ = "ptq"


class Backend(StrEnum):
    """Tool for PTQ: the TFLite converter, or Google's AI Edge Quantizer, which quantises a float TFLite file."""

    CONVERTER = "converter"
    AI_EDGE_QUANTIZER = "ai_edge_quantizer"


class RangeMethod(StrEnum):
    """How the range of an activation is found from its values on the calibration samples.

    `minmax` takes the smallest and the largest value; `percentile` leaves a share of the values out on either side;
    `mse` has the smallest mean square error of rounding and clipping; `moving_average` averages the extremes of batches
    of 64 samples.
    """

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    MOVING_AVERAGE = "moving_average"


class PtqAlgorithm(StrEnum):
    """How the AI Edge Quantizer rounds int8 weights.

    `min_max` takes the largest weight of a channel as the end of its range. `mse` and `octav` (arXiv:2206.06501) clip
    the largest weights where that makes the mean square error smaller: `mse` by a fixed multiple of the weights' root
    mean square, `octav` by an iteration for each channel. `gptq` (arXiv:2210.17323) rounds the weights of fully
    connected operations one after the other; later ones make up for the error on the calibration samples.
    """

    MIN_MAX = "min_max"
    MSE = "mse"
    OCTAV = "octav"
    GPTQ = "gptq"


#: What a recipe without `ranges` takes.
DEFAULT_RANGES = RangeMethod.MINMAX
#: What a recipe with `ranges: percentile` and without `percentile` takes.
DEFAULT_PERCENTILE = 99.99


class Keep(Document):
    """Which layers stay in float because rounding them costs most.

    Attributes:
        budget: largest share of the kernels' weights, and of the multiplications by them, that may stay in float; 0.1
            for a tenth. The layers are chosen by how much noise each adds to the outputs on calibration samples.
        samples: number of calibration samples for that choice. The choice takes about
            3 * samples * (number of layers) inferences, with each layer called from Python.
    """

    budget: float = Field(gt=0.0, lt=1.0)
    samples: int = Field(default=32, ge=1)


class Quantization(Document):
    """Numeric types in the TFLite file, and the method of quantisation.

    Attributes:
        backend: tool for PTQ; QAT always uses the TFLite converter, as the QAT graph contains the ranges.
        calibration_samples: number of samples from which activation ranges are measured, for PTQ and before QAT.
        keep_clusters: for QAT only: equal weights of a kernel (as in a model clustered by tfmot) stay equal in training
            and in the file. A clustered kernel is quantised with one scale for all channels.
        scope: layers that get quantisers; all other layers stay in float and are reported as `kept_float`.
        weight_scales: one scale for each output channel of an int8 kernel, or one for the kernel, which some NPUs need.
        input_type: of the file's float inputs; None takes the type of the activations.
        output_type: of the file's outputs; None takes the type of the activations.
        operations: TFLite operations that the device has; None for all. An elementwise function that the device lacks,
            such as GELU, becomes a table in the file of a QAT model.
        keep: leaves the most sensitive layers in float; None leaves none. For int8 weights and activations.
        ranges: how activation ranges are found from the calibration samples, for PTQ and before QAT; None takes
            `minmax`. QAT starts from these ranges and then moves them with the extremes of each batch.
        percentile: for `ranges: percentile`: the upper end of a range, in percent of the values; as many values stay
            outside at the lower end. None takes 99.99.
        equalize: before int8, for PTQ and QAT: even out the ranges of the channels between two layers, by factors that
            leave the outputs of the float model as they are (cross-layer equalisation).
        ptq_algorithm: for the back end `ai_edge_quantizer`: how it rounds int8 weights; None takes `min_max`.
    """

    weights: Weights = Weights.INT8
    activations: Activations = Activations.INT8
    method: Method = Method.QAT
    backend: Backend = Backend.CONVERTER
    calibration_samples: int = Field(default=512, ge=1)
    keep_clusters: bool = False
    scope: Scope = Scope()
    weight_scales: WeightScales = later(WeightScales.PER_CHANNEL)
    input_type: IoType | None = later()
    output_type: IoType | None = later()
    operations: tuple[str, ...] | None = later()
    keep: Keep | None = later()
    ranges: RangeMethod | None = later()
    percentile: float | None = later(ge=50.0, lt=100.0)
    ptq_algorithm: PtqAlgorithm | None = later()
    equalize: bool = later(default=False)

    @model_validator(mode="after")
    def _ranges_are_measured(self) -> Quantization:
        if self.ranges is not None and self.activations is Activations.FLOAT32:
            raise ValueError(
                f"ranges is for int8 or int16 activations, received {self.activations}, which has no ranges"
            )
        if self.equalize and self.activations is Activations.FLOAT32:
            raise ValueError(f"equalize is for activations of int8 or int16, received {self.activations}")
        if self.equalize and self.keep_clusters:
            raise ValueError("equalize gives the channels of a kernel factors of their own, and keeps no clusters")
        if self.percentile is not None and self.ranges is not RangeMethod.PERCENTILE:
            raise ValueError(f"percentile is for ranges: percentile, received {self.ranges or DEFAULT_RANGES}")
        return self

    @model_validator(mode="after")
    def _algorithm_has_its_back_end(self) -> Quantization:
        if self.ptq_algorithm is None:
            return self
        if self.backend is not Backend.AI_EDGE_QUANTIZER:
            raise ValueError(f"ptq_algorithm is for backend: ai_edge_quantizer, received {self.backend}")
        if self.ptq_algorithm is PtqAlgorithm.GPTQ and self.activations is Activations.FLOAT32:
            raise ValueError(
                f"ptq_algorithm gptq needs calibrated activations, of int8 or int16, received {self.activations}"
            )
        return self

    @model_validator(mode="after")
    def _kept_beside_int8(self) -> Quantization:
        if self.keep is not None and (self.weights, self.activations) != (Weights.INT8, Activations.INT8):
            raise ValueError(
                f"keep is for int8 weights and int8 activations, received {self.weights} with {self.activations}"
            )
        return self

    @model_validator(mode="after")
    def _integers_are_int8(self) -> Quantization:
        types = (self.input_type, self.output_type)
        integers = [each for each in types if each in {IoType.INT8, IoType.UINT8}]
        if integers and self.activations is not Activations.INT8:
            raise ValueError(
                f"input_type and output_type {min(integers)} go with int8 activations, received {self.activations}"
            )
        if self.weight_scales is WeightScales.PER_TENSOR and self.weights is not Weights.INT8:
            raise ValueError(f"weight_scales per_tensor goes with int8 weights, received {self.weights}")
        return self

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
    """Epochs and learning rates of the recipe's training.

    Attributes:
        fine_tune_epochs: epochs after pruning; ignored by a recipe with neither sparsity nor channels.
        qat_epochs: epochs of quantisation-aware training.
        fine_tune_learning_rate: None keeps the learning rate with which the model was compiled.
        qat_learning_rate: None takes a tenth of the compiled learning rate, as QAT only adjusts trained weights.
    """

    fine_tune_epochs: int = Field(default=4, ge=0)
    qat_epochs: int = Field(default=2, ge=0)
    fine_tune_learning_rate: float | None = Field(default=None, gt=0.0)
    qat_learning_rate: float | None = Field(default=None, gt=0.0)


class Recipe(Document):
    """Immutable description of how to optimise a model: sparsity, quantisation, scopes, budget, training plan.

    A user writes a recipe as a YAML or JSON file, or as a name that is decoded (see `tfmot_ops.recipes.names`).

    Attributes:
        name: name of the recipe, in tables and in MLflow.
        channels: which filters to remove; None removes none.
        sparsity: how many weights of those that stay become zero; None does not prune.
        quantization: how to quantise; None leaves the model in float.
        budget: epochs and learning rates.
        training: how to train; what it leaves out keeps its default.
        target: the device that the file is for, as its name, the path of a file, or the target itself.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    sparsity: Sparsity | None = None
    quantization: Quantization | None = None
    budget: Budget = Budget()
    training: TrainingPlan | None = later()
    target: TargetRef | None = later()
    channels: Channels | None = later()

    @model_validator(mode="after")
    def _zeros_stay(self) -> Recipe:
        algorithm = None if self.quantization is None else self.quantization.ptq_algorithm
        if self.sparsity is not None and algorithm is PtqAlgorithm.GPTQ:
            raise ValueError("ptq_algorithm gptq changes weights that are zero, and cannot be combined with sparsity")
        return self
