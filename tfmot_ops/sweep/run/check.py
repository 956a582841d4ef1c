"""Checks one cell of the compat matrix: runs an architecture through the whole chain with a recipe."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfmot_ops.contract import Activations, CompatResult, Method, Quantization, Recipe, Stage, Status
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.measure.noise import sqnr_db
from tfmot_ops.core.measure.predictions import predict
from tfmot_ops.core.pruning.channels import prune_channels
from tfmot_ops.core.pruning.sparsity import assert_sparsity
from tfmot_ops.core.pruning.wrappers import prune, strip
from tfmot_ops.core.quantization.qat import normalize, quantize
from tfmot_ops.core.quantization.without_rounding import outputs_without_fake_quant
from tfmot_ops.core.saving.files import load_model, save_model
from tfmot_ops.core.tflite.export import export_tflite
from tfmot_ops.core.tflite.profile import profile_tflite
from tfmot_ops.core.training.batch_norm import refresh_batch_norm
from tfmot_ops.core.training.checkpoint import build_optimizer
from tfmot_ops.errors import CompatError
from tfmot_ops.sweep.run.peak import peak_bytes, reset_peak
from tfmot_ops.system.versions import installed

#: Largest relative difference max |a - b| / max |a| between the outputs of a model before and after a rewriting.
_TOLERANCE = 1e-4
#: Number of images for calibration and for comparing outputs.
_SAMPLES = 8
#: Number of images of the training step; afterwards a BatchNormalization with momentum 0 has their statistics.
_TRAINING_SAMPLES = 32
#: Number of images from which BatchNormalization gets its statistics. With a few images the last layers of a random
#: network divide by the small standard deviation of a few numbers, and amplify rounding errors to visible differences.
_STATISTICS_SAMPLES = 64
#: Largest allowed difference between PTQ's SQNR and the file's with one seed of random weights, in dB. Seeds vary by up
#: to 3 dB each way (docs/evidence.md: MobileNetV3Large -2.4, +2.7, -2.5); the 1 dB limit of `sweep.judge.margins`
#: applies to the median of several seeds.
_MARGIN_DB = 6.0
#: Lowest SQNR in dB of a QAT file without PTQ to compare with; a file whose outputs are all 0 has 0 dB.
_FLOOR_DB = 0.0
#: Lowest SQNR in dB of any file: the noise has four times the power of the outputs. PTQ of networks with random weights
#: goes down to -3.1 dB (docs/evidence.md, EfficientNetB0).
_LEAST_DB = -6.0
#: The converter's PTQ, the reference for the SQNR of all recipes.
_PTQ = Recipe(name="ptq", quantization=Quantization(method=Method.PTQ))


class Buildable(Protocol):
    """What `check_architecture` can check: an `Architecture`, or a part of an architecture."""

    @property
    def name(self) -> str:
        """Name in the result."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (H, W, C) for images."""

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Smallest and largest input value."""

    def build(self, *, seed: int = 0) -> keras.Model:
        """Build the model with one input, and with random weights decided by `seed`."""


def check_architecture(
    architecture: Buildable,
    recipe: Recipe,
    *,
    seed: int = 0,
    against_ptq: bool = True,
    until: Stage = Stage.AGREE,
    on_stage: Callable[[Stage], None] = lambda _stage: None,
) -> CompatResult:
    """Run one architecture through build, normalize, prune, strip, quantize, train, reload, export, invoke, agree.

    Never raises: an exception becomes a failed result. Weights are random; BatchNormalization has the statistics of a
    batch. A recipe without sparsity has no stages prune and strip. A recipe without QAT has no stages quantize, train
    and reload: its file is made from the float model, with the images as calibration samples.

    The file must have inputs and outputs of the activations' type. With int8 activations, all multiply-accumulates must
    be int8, without float operations, and after QAT without requantise operations.

    The file's outputs must be finite. Their SQNR to the outputs of the model from which the file was made (QAT or
    float) must be at least -6 dB, and at most 6 dB below the SQNR of PTQ's file to the float model. Without PTQ to
    compare with, the file of a QAT model needs 0 dB. These bounds find wrong files only, as the SQNR of random weights
    depends on the seed; to judge a recipe, compare the medians of `sqnr_db` and `ptq_sqnr_db` over several seeds.

    Args:
        architecture: entry of the catalogue.
        recipe: recipe with a quantization.
        seed: seed of weights and images.
        against_ptq: also convert the float model with PTQ, to compare the SQNR; ignored if the recipe is this PTQ.
        until: the last stage to run.
        on_stage: called with each stage when it begins, so that a log shows the stage in which a process died.

    Returns:
        The result; `failed_stage`, `error_type` and `message` describe a failure. Metrics: `layers`, `parameters`,
        `normalize_difference` and `quantize_difference` (relative, quantisers off), `int8_mac_fraction`, `float_ops`,
        `requantize_ops`, `sparsity` (smallest of the pruned kernels), `size_bytes`, `gzip_bytes`, `sqnr_db`,
        `ptq_sqnr_db`, `<stage>_s` (CPU seconds), `<stage>_peak_bytes` and `peak_memory_bytes` (resident memory of the
        process, TensorFlow included).
    """
    cell = _Cell(architecture, recipe, seed, until, on_stage)
    try:
        cell.run(against_ptq=against_ptq)
    except _LastStageDone:
        return cell.result(Status.OK)
    except Exception as error:  # noqa: BLE001 - whatever fails is this cell's result
        return cell.result(Status.FAILED, error)
    return cell.result(Status.OK)


class _LastStageDone(Exception):  # noqa: N818 - no error: ends the cell after the stage `until`
    pass


class _Cell:
    def __init__(
        self,
        architecture: Buildable,
        recipe: Recipe,
        seed: int,
        until: Stage,
        on_stage: Callable[[Stage], None],
    ) -> None:
        self.architecture = architecture
        self.recipe = recipe
        self.seed = seed
        self.until = until
        self.on_stage = on_stage
        self.stage = Stage.BUILD
        self.metrics: dict[str, float] = {}
        quantization = recipe.quantization
        self.trains = quantization is not None and quantization.method is Method.QAT
        self.activations = quantization.activations if quantization else Activations.FLOAT32
        low, high = architecture.pixel_range
        rng = np.random.default_rng(seed)
        self.population = rng.uniform(low, high, (_STATISTICS_SAMPLES, *architecture.input_shape)).astype(np.float32)
        self.images = self.population[:_SAMPLES]

    def run(self, *, against_ptq: bool) -> None:
        with self._timed(Stage.BUILD):
            model = self._build()
        with self._timed(Stage.NORMALIZE):
            self._normalize(model)
        if self.recipe.channels is not None:
            with self._timed(Stage.PRUNE):
                model, _ = prune_channels(model, self.recipe)
        if self.recipe.sparsity is not None:
            with self._timed(Stage.PRUNE):
                model, _ = prune(model, self.recipe)
            with self._timed(Stage.STRIP):
                model = self._strip(model)
                gc.collect()
        refused = None
        if against_ptq and self.until is Stage.AGREE and self.recipe.quantization != _PTQ.quantization:
            # Needed by the stage agree, but done early: the converter needs ten times the memory of the weights, and
            # after training the process holds more memory.
            with self._timed(Stage.AGREE):
                refused = self._compare_ptq(model)
        if self.trains:
            # In a list that the callee empties, so that no reference in this frame keeps the float model alive.
            held = [model]
            del model
            model = self._train_and_reload(held)
        else:
            self.expected = _answers(model, self.images)
        with self._timed(Stage.EXPORT):
            # The images fix the sizes that are None in the model's input shape.
            data = export_tflite(model, self.recipe, self.images)
            self._check_file(data)
            del model
            gc.collect()
        with self._timed(Stage.INVOKE):
            answers = _flat(predict(data, self.images))
            del data
        with self._timed(Stage.AGREE):
            self._agree(answers)
            if refused is not None:
                raise refused

    def _train_and_reload(self, held: list[keras.Model]) -> keras.Model:
        with self._timed(Stage.QUANTIZE):
            quantized = self._quantize(held.pop())
            gc.collect()
        with self._timed(Stage.TRAIN):
            self._train(quantized)
        with self._timed(Stage.RELOAD):
            self.expected = _answers(quantized, self.images)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.h5"
                save_model(quantized, path)
                # Collected before the next model is built: the largest model has 1.4 GB of weights, and a model is in a
                # reference cycle.
                del quantized
                gc.collect()
                quantized = load_model(path)
            self._same(self.expected, _answers(quantized, self.images))
        return quantized

    def result(self, status: Status, error: Exception | None = None) -> CompatResult:
        metrics = {name: float(value) for name, value in self.metrics.items() if np.isfinite(value)}
        return CompatResult(
            architecture=self.architecture.name,
            recipe=self.recipe.name,
            status=status,
            failed_stage=None if error is None else self.stage,
            error_type=None if error is None else type(error).__name__,
            message="" if error is None else str(error)[:2000],
            metrics=metrics,
            versions=_versions(),
        )

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        if list(Stage).index(stage) > list(Stage).index(self.until):
            raise _LastStageDone
        self.stage = stage
        self.on_stage(stage)
        start = time.process_time()
        reset_peak()
        try:
            yield
        finally:
            self._count(f"{stage.value}_s", self.metrics.get(f"{stage.value}_s", 0.0) + time.process_time() - start)
            self._count(f"{stage.value}_peak_bytes", peak_bytes())
            self._count("peak_memory_bytes", peak_bytes())

    def _count(self, name: str, value: float) -> None:
        self.metrics[name] = max(value, self.metrics.get(name, 0.0))

    def _build(self) -> keras.Model:
        model = self.architecture.build(seed=self.seed)
        refresh_batch_norm(model, [self.population])
        model.compile(keras.optimizers.SGD(1e-4), "mse")
        self.metrics |= {"layers": len(model.layers), "parameters": model.count_params()}
        # Models with integer inputs (indices) get integers.
        self.reads_floats = all(tensor.dtype.is_floating for tensor in model.inputs)
        return model

    def _normalize(self, model: keras.Model) -> None:
        difference = _difference(_answers(model, self.images), _answers(normalize(model), self.images))
        self._require("normalize_difference", difference)

    def _strip(self, pruned: keras.Model) -> keras.Model:
        model = strip(pruned)
        self.metrics["sparsity"] = min(assert_sparsity(model, self.recipe).values())
        # With half of the weights 0 the BatchNormalization statistics are wrong; fine-tuning would update them.
        refresh_batch_norm(model, [self.population])
        return model

    def _quantize(self, model: keras.Model) -> keras.Model:
        quantized, _ = quantize(model, self.recipe, self.images)
        difference = _difference(
            _answers(model, self.images), _flat(outputs_without_fake_quant(quantized, [self.images]))
        )
        self._require("quantize_difference", difference)
        return quantized

    def _require(self, name: str, difference: float) -> None:
        self.metrics[name] = difference
        if not difference <= _TOLERANCE:
            raise CompatError(
                f"{name.partition('_')[0]} changed the outputs of the model",
                required=f"a relative difference of at most {_TOLERANCE}",
                received=f"{difference:.3g}",
                remedy="compare the graph before and after, layer by layer",
            )

    def _train(self, quantized: keras.Model) -> None:
        images = self.population[:_TRAINING_SAMPLES]
        targets = np.zeros((len(images), *quantized.output_shape[1:]), np.float32)
        build_optimizer(quantized)
        # One eager step: tracing the gradient as a graph takes eight times as long as computing it.
        quantized.run_eagerly = True
        loss = quantized.train_on_batch(images, targets)
        if not np.isfinite(loss):
            raise CompatError(
                "the training step diverged", required="a finite loss", received=str(loss), remedy="check the ranges"
            )
        assert_sparsity(quantized, self.recipe)

    def _same(self, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> None:
        difference = float(np.max(np.abs(before - after)))
        if difference != 0.0:
            raise CompatError(
                "the reloaded model gives different outputs", required="a difference of 0", received=str(difference),
                remedy="check which layer's state the file lacks",
            )  # fmt: skip

    def _check_file(self, data: bytes) -> None:
        profile = profile_tflite(data)
        self.metrics |= {
            "int8_mac_fraction": profile.int8_mac_fraction,
            "float_ops": profile.float_ops,
            "requantize_ops": profile.requantize_ops,
            "size_bytes": profile.size_bytes,
            "gzip_bytes": profile.gzip_bytes,
            "file_sparsity": profile.weight_sparsity,
        }
        ends = {*profile.output_dtypes, *(profile.input_dtypes if self.reads_floats else ())}
        if ends != {self.activations.value}:
            raise CompatError(
                "the file's inputs and outputs have another type than the recipe's activations",
                required=self.activations.value,
                received=f"inputs {', '.join(profile.input_dtypes)}, outputs {', '.join(profile.output_dtypes)}",
                remedy="check the input and output types that export_tflite sets on the converter",
            )
        if self.activations is not Activations.INT8:
            return
        requantize_ops = profile.requantize_ops if self.trains else 0
        if profile.int8_mac_fraction < 1.0 or profile.float_ops or requantize_ops:
            raise CompatError(
                "the file is not fully int8",
                required="all multiply-accumulates in int8, no float operations, after QAT no requantise operations",
                received=f"int8 share {profile.int8_mac_fraction:.4f}, {profile.float_ops} float operations, "
                f"{profile.requantize_ops} requantise operations",
                remedy="check the report of quantize for layers that are kept in float",
            )

    def _agree(self, answers: npt.NDArray[Any]) -> None:
        if not np.all(np.isfinite(answers)):
            raise CompatError(
                "the TFLite file returned NaN or infinity",
                required="finite outputs",
                received=f"{np.count_nonzero(~np.isfinite(answers))} of {answers.size} outputs are NaN or infinity",
                remedy="compare the file with its model layer by layer: core.layer_sqnr",
            )
        found = self.metrics["sqnr_db"] = sqnr_db(self.expected, answers)
        ptq = self.metrics.get("ptq_sqnr_db")
        unknown = _FLOOR_DB if self.trains else _LEAST_DB
        bound = unknown if ptq is None else max(ptq - _MARGIN_DB, _LEAST_DB)
        if not found >= bound:
            raise CompatError(
                "the outputs of the TFLite file differ from those of its model",
                required=f"an SQNR of at least {bound:.1f} dB" + ("" if ptq is None else f"; PTQ's is {ptq:.1f} dB"),
                received=f"{found:.1f} dB",
                remedy="compare the file with its model layer by layer: core.layer_sqnr",
            )

    def _compare_ptq(self, model: keras.Model) -> Exception | None:
        """Measure the SQNR of PTQ's file; return the error if PTQ failed, which is raised in the stage agree."""
        try:
            data = export_tflite(model, _PTQ, self.images)
            self.metrics["ptq_sqnr_db"] = sqnr_db(_answers(model, self.images), _flat(predict(data, self.images)))
        except Exception as error:  # noqa: BLE001 - raised later
            return error
        return None


def _answers(model: keras.Model, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Eager: tracing a graph for one batch takes ten times as long as computing the batch.
    return _flat(model(images, training=False))


def _flat(outputs: Any) -> npt.NDArray[Any]:
    parts = outputs if isinstance(outputs, list | tuple) else [outputs]
    return np.concatenate([np.ravel(np.asarray(part)) for part in parts])


def _difference(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.max(np.abs(reference - other)) / max(float(np.max(np.abs(reference))), 1e-12))


def _versions() -> dict[str, str]:
    """Package -> version; a forecast compares a CPU image with another environment by one name of TensorFlow."""
    return {name.removesuffix("-cpu"): version for name, version in installed().items()}
