"""One cell of the compat matrix: an architecture goes through the whole chain under a recipe; never raises."""

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
from tfmot_ops.core.pruning.sparsity import assert_sparsity
from tfmot_ops.core.pruning.wrappers import prune, strip
from tfmot_ops.core.quantization.qat import normalize, quantize, unrounded
from tfmot_ops.core.saving.files import load_model, save_model
from tfmot_ops.core.tflite.export import export_tflite
from tfmot_ops.core.tflite.profile import profile_tflite
from tfmot_ops.core.training.batch_norm import refresh_batch_norm
from tfmot_ops.core.training.checkpoint import build_optimizer
from tfmot_ops.errors import CompatError
from tfmot_ops.sweep.run.peak import peak_bytes, reset_peak
from tfmot_ops.system.versions import installed

#: Largest relative difference that rewriting a model may make, max |a - b| / max |a|.
_TOLERANCE = 1e-4
#: Images to calibrate and compare on.
_SAMPLES = 8
#: Images of the training step: a BatchNormalization of momentum 0 has the statistics of these afterwards.
_TRAINING_SAMPLES = 32
#: Images BatchNormalization gets its statistics from: with a few only, a random net amplifies the last bit of its
#: input to a visible difference, as its last layers divide by the spread of that few numbers.
_STATISTICS_SAMPLES = 64
#: How far behind PTQ one seed of random weights may be, in dB. Seeds scatter by up to 3 dB each way (docs/evidence.md:
#: MobileNetV3Large -2.4, +2.7, -2.5); whether a recipe is 1 dB behind, the medians of seeds say (`sweep.margins`).
_MARGIN_DB = 6.0
#: What a file is held to after QAT where PTQ is not known: a file that answers 0 to everything has as much.
_FLOOR_DB = 0.0
#: What every file is held to: noise four times as strong as the answers. PTQ of random nets is down to -3.1 dB
#: (docs/evidence.md, EfficientNetB0).
_LEAST_DB = -6.0
#: PTQ as the converter does it, which the others are compared with.
_PTQ = Recipe(name="ptq", quantization=Quantization(method=Method.PTQ))


class Buildable(Protocol):
    """What a cell takes: an `Architecture`, or a part of one."""

    @property
    def name(self) -> str:
        """Names it in the result."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample: (H, W, C) for images."""

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Smallest and largest value its inputs have."""

    def build(self, *, seed: int = 0) -> keras.Model:
        """The model with one input, its weights decided by `seed`."""


def check_architecture(
    architecture: Buildable,
    recipe: Recipe,
    *,
    seed: int = 0,
    against_ptq: bool = True,
    until: Stage = Stage.AGREE,
    on_stage: Callable[[Stage], None] = lambda _stage: None,
) -> CompatResult:
    """Take one architecture through build, normalize, prune, strip, quantize, train, reload, export, invoke, agree.

    Weights are random; BatchNormalization has the statistics of a batch. No stage is skipped silently: a recipe
    without a sparsity has no prune and strip, one without QAT no quantize, train and reload: its file is made of the
    float model, with the images as calibration.

    The file has to hold what the recipe promises: inputs and outputs of the activations' type; for int8 activations all
    multiply-accumulates in int8 and no float operation, and after QAT no requantising one either.

    The file's answers have to be finite, and to agree with those of the model it was made from (QAT or float) to an
    SQNR of at least that of PTQ's file to the float model less 6 dB, and of -6 dB. Without PTQ to compare with, a file
    of a QAT model is held to 0 dB. These bounds find files that are wrong; with random weights one seed says no more,
    so whoever has several compares the medians of `sqnr_db` and `ptq_sqnr_db`.

    Args:
        architecture: entry of the catalogue.
        recipe: what to do.
        seed: decides weights and images.
        against_ptq: also convert the float model without training, to compare with; a recipe that says just that
            is not compared with itself.
        until: the last stage to go through.
        on_stage: told each stage as it is entered: what a process that dies was at.

    Returns:
        The result; `failed_stage`, `error_type` and `message` say what went wrong. Metrics: `layers`, `parameters`,
        `normalize_difference` and `quantize_difference` (relative, quantisers off), `int8_mac_fraction`, `float_ops`,
        `requantize_ops`, `sparsity` (smallest of the pruned kernels), `size_bytes`, `gzip_bytes`, `sqnr_db`,
        `ptq_sqnr_db`, `<stage>_s` (CPU seconds), `<stage>_peak_bytes` and `peak_memory_bytes` (resident memory of the
        process, TensorFlow included).
    """
    cell = _Cell(architecture, recipe, seed, until, on_stage)
    try:
        cell.run(against_ptq=against_ptq)
    except _Enough:
        return cell.result(Status.OK)
    except Exception as error:  # noqa: BLE001 - whatever fails is this cell's result
        return cell.result(Status.FAILED, error)
    return cell.result(Status.OK)


class _Enough(Exception):  # noqa: N818 - no error: the last stage that was asked for is done
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
        if self.recipe.sparsity is not None:
            with self._timed(Stage.PRUNE):
                model, _ = prune(model, self.recipe)
            with self._timed(Stage.STRIP):
                model = self._strip(model)
                gc.collect()
        refused = None
        if against_ptq and self.until is Stage.AGREE and self.recipe.quantization != _PTQ.quantization:
            # Of the stage that compares, but done here: the converter holds ten times the weights, and later the
            # process holds what training left in it.
            with self._timed(Stage.AGREE):
                refused = self._compare_ptq(model)
        if self.trains:
            # A list, so that this frame does not hold the float model while the rest is done.
            held = [model]
            del model
            model = self._train_and_reload(held)
        else:
            self.expected = _answers(model, self.images)
        with self._timed(Stage.EXPORT):
            # The images say the sizes that a model leaves open.
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
                # Before the next one is made: the largest model has 1.4 GB of weights, and a model is a cycle.
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
            versions=installed(),
        )

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        if list(Stage).index(stage) > list(Stage).index(self.until):
            raise _Enough
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
        # What reads indices stays with integers.
        self.reads_floats = all(tensor.dtype.is_floating for tensor in model.inputs)
        return model

    def _normalize(self, model: keras.Model) -> None:
        difference = _difference(_answers(model, self.images), _answers(normalize(model), self.images))
        self._require("normalize_difference", difference)

    def _strip(self, pruned: keras.Model) -> keras.Model:
        model = strip(pruned)
        self.metrics["sparsity"] = min(assert_sparsity(model, self.recipe).values())
        # Half of the weights are gone, and the statistics with them; fine-tuning would do this.
        refresh_batch_norm(model, [self.population])
        return model

    def _quantize(self, model: keras.Model) -> keras.Model:
        quantized, _ = quantize(model, self.recipe, self.images)
        difference = _difference(_answers(model, self.images), _flat(unrounded(quantized, [self.images])))
        self._require("quantize_difference", difference)
        return quantized

    def _require(self, name: str, difference: float) -> None:
        self.metrics[name] = difference
        if not difference <= _TOLERANCE:
            raise CompatError(
                f"{name.partition('_')[0]} changed what the model computes",
                required=f"a relative difference of at most {_TOLERANCE}",
                received=f"{difference:.3g}",
                remedy="compare the graph before and after, layer by layer",
            )

    def _train(self, quantized: keras.Model) -> None:
        images = self.population[:_TRAINING_SAMPLES]
        targets = np.zeros((len(images), *quantized.output_shape[1:]), np.float32)
        build_optimizer(quantized)
        # One step, op by op: to trace its gradient takes eight times as long as to compute it.
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
                remedy="look at what export_tflite tells the converter of its inputs and outputs",
            )
        if self.activations is not Activations.INT8:
            return
        requantize_ops = profile.requantize_ops if self.trains else 0
        if profile.int8_mac_fraction < 1.0 or profile.float_ops or requantize_ops:
            raise CompatError(
                "the file is not fully int8",
                required="all multiply-accumulates in int8, no float and, after QAT, no requantise op",
                received=f"{profile.int8_mac_fraction:.4f}, {profile.float_ops} and {profile.requantize_ops}",
                remedy="look for the layers that the report of quantize keeps in float",
            )

    def _agree(self, answers: npt.NDArray[Any]) -> None:
        if not np.all(np.isfinite(answers)):
            raise CompatError(
                "the file's answers are no numbers",
                required="finite answers",
                received=f"{np.count_nonzero(~np.isfinite(answers))} of {answers.size} are not",
                remedy="compare the file with the model it was made from, layer by layer: core.layer_sqnr",
            )
        found = self.metrics["sqnr_db"] = sqnr_db(self.expected, answers)
        ptq = self.metrics.get("ptq_sqnr_db")
        unknown = _FLOOR_DB if self.trains else _LEAST_DB
        bound = unknown if ptq is None else max(ptq - _MARGIN_DB, _LEAST_DB)
        if not found >= bound:
            raise CompatError(
                "the file does not compute what the model it was made from does",
                required=f"an SQNR of at least {bound:.1f} dB" + ("" if ptq is None else f"; PTQ's is {ptq:.1f} dB"),
                received=f"{found:.1f} dB",
                remedy="compare the two layer by layer: core.layer_sqnr",
            )

    def _compare_ptq(self, model: keras.Model) -> Exception | None:
        """What kept PTQ from it: an error of the last stage, raised when that is reached."""
        try:
            data = export_tflite(model, _PTQ, self.images)
            self.metrics["ptq_sqnr_db"] = sqnr_db(_answers(model, self.images), _flat(predict(data, self.images)))
        except Exception as error:  # noqa: BLE001 - raised later
            return error
        return None


def _answers(model: keras.Model, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Op by op: tracing a graph for one batch costs ten times the batch.
    return _flat(model(images, training=False))


def _flat(outputs: Any) -> npt.NDArray[Any]:
    parts = outputs if isinstance(outputs, list | tuple) else [outputs]
    return np.concatenate([np.ravel(np.asarray(part)) for part in parts])


def _difference(reference: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.max(np.abs(reference - other)) / max(float(np.max(np.abs(reference))), 1e-12))
