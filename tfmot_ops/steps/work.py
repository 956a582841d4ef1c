"""The state of a running step: its options, recipe and data set, its inputs and outputs, and its metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from pydantic import JsonValue

from tfmot_ops import targets
from tfmot_ops.contract import (
    Artifact,
    ArtifactFormat,
    DataOptions,
    Headline,
    LayerReport,
    Quantization,
    Recipe,
    StepOptions,
    StepSpec,
    Target,
)
from tfmot_ops.errors import SpecError
from tfmot_ops.steps.resume import StepCheckpoint
from tfmot_ops.steps.scoring import score, validation_metric
from tfmot_ops.store import SUFFIXES, Store
from tfmot_ops.tasks.in_order import in_order

if TYPE_CHECKING:
    from tfmot_ops.core.keras.types import Model
    from tfmot_ops.core.tflite.profile import TFLiteProfile
    from tfmot_ops.data.splits import Dataset
    from tfmot_ops.tasks.task import Scores

#: Quantization with which a float model is exported, to be measured as a float32 TFLite file.
FLOAT = Recipe(name="float32")
_EXAMPLE_SAMPLES = 4
#: Seconds between two reports of how many samples are measured.
_SECONDS_BETWEEN = 5.0


class Progress(Protocol):
    """Receives the progress of a step."""

    def message(self, text: str) -> None:
        """Called with one line of text for the user."""

    def epoch(self, stage: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Called when epoch number `epoch` (from 1) of `epochs` has ended with these metrics."""

    def restored(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Called for an epoch of an earlier attempt, which may not have been recorded."""

    def model(self, model: Model, example: object) -> None:
        """Called with the tf_keras model that the step made; `example` is a batch of its input, [samples, ...]."""


#: The options of the kind of step.
AnyOptions = TypeVar("AnyOptions", bound=StepOptions)
#: The options of a kind that computes with a model.
ModelOptions = TypeVar("ModelOptions", bound=DataOptions)


@dataclass
class Work(Generic[AnyOptions]):
    """A running step: its spec, store and work folder, and the outputs, metrics and parameters it has so far.

    `given_headline` is the metric by which the models are compared, for a kind that is given figures and no data set.
    """

    spec: StepSpec
    store: Store
    workdir: Path
    progress: Progress
    outputs: dict[str, Artifact] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, JsonValue] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    given_headline: Headline | None = None

    @property
    def options(self) -> AnyOptions:
        """The options of the step, typed as the class of its kind."""
        return cast("AnyOptions", self.spec.options)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the step, with the numeric types and scales of the step's target; a name is decoded.

        Raises:
            SpecError: the spec has no recipe.
        """
        from tfmot_ops import core

        if self.options.named_recipe is None:
            raise SpecError(
                f"{self.spec.step_id}: the step has no recipe",
                required="options.recipe",
                received="nothing",
                remedy="`tfmot-ops list recipes` prints the names",
            )
        recipe: Recipe = core.recipes.resolve(self.options.named_recipe)
        self.parameters["recipe"] = recipe.model_dump(mode="json")
        return targets.adapted(recipe, self.target)

    @cached_property
    def target(self) -> Target | None:
        """The device that the file is for; None for no certain device."""
        named = self.options.named_target
        return None if named is None else targets.resolve_target(named)

    def path(self, name: str) -> Path:
        """Fetch and verify an input artifact at each call, and return the path of the local copy."""
        return self.store.fetch(self.spec.inputs[name], self.workdir / "inputs" / name)

    def put_bytes(self, data: bytes, name: str, artifact_format: ArtifactFormat) -> None:
        """Save an output that is not a model."""
        path = self.workdir / (name + SUFFIXES[artifact_format])
        path.write_bytes(data)
        self.outputs[name] = self.store.put(path, name, artifact_format)

    def say(self, text: str) -> None:
        """Report a line of text, which begins with the kind of the step."""
        self.progress.message(f"{self.spec.options.kind}: {text}")

    def measure(self, metrics: Mapping[str, float]) -> None:
        """Record the metrics with a finite value; NaN or infinity means that a metric could not be measured."""
        self.metrics |= {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


@dataclass
class ModelWork(Work[ModelOptions]):
    """A running step that computes with a model: also has a data set and a training checkpoint."""

    checkpoint: StepCheckpoint | None = None

    @cached_property
    def data(self) -> Dataset:
        """The data set, split by the seed of the spec, with its task."""
        from tfmot_ops.data.splits import load_dataset

        options = self.options
        data = load_dataset(options.dataset, self.spec.seed, options.limit, options.task, options.metric)
        self.parameters |= {"dataset": options.dataset, "dataset_digest": data.digest, "task": data.task.name}
        self.parameters |= {"dataset_train_samples": data.train_samples, "batch_size": options.batch_size}
        self.parameters["dataset_schema"] = dict(data.schema())
        if data.record:
            self.parameters["dataset_record"] = dict(data.record)
        return data

    @cached_property
    def headline(self) -> Headline:
        """The metric by which the task's models are compared."""
        return self.data.task.headline(self.data.facts)

    def calibration(self, model: Model) -> Any:
        """Samples for measuring the ranges of activations, [samples, ...]; a list in the order of several inputs."""
        quantization = self.recipe.quantization or Quantization()
        return self.first(self.data.x_calibration, quantization.calibration_samples, model)

    def first(self, samples: object, count: int, model: Model) -> Any:
        """The first samples of inputs as arrays; a list in the order of the inputs of `model` if there are several."""
        columns = in_order(samples, list(model.input_names), "input")
        return [column[:count] for column in columns] if isinstance(columns, list) else columns[:count]

    def load_model(self) -> Any:
        """The input `model`, whose weights are all finite."""
        from tfmot_ops import core
        from tfmot_ops.core.graph.finite import require_finite_weights

        model = core.load_model(self.path("model"))
        require_finite_weights(model)
        return model

    def put_model(self, model: Model) -> None:
        """Save the output `model`, and record its compile configuration as a parameter."""
        from tfmot_ops import core
        from tfmot_ops.core.keras.compiling import compile_parameters

        path = self.workdir / "model.h5"
        core.save_model(model, path)
        self.outputs["model"] = self.store.put(path, "model", ArtifactFormat.KERAS_H5)
        self.parameters["compile"] = dict(compile_parameters(model))
        x = self.data.x_calibration
        is_named = isinstance(x, Mapping)
        example = {key: column[:_EXAMPLE_SAMPLES] for key, column in x.items()} if is_named else x[:_EXAMPLE_SAMPLES]
        self.progress.model(model, example)

    def epochs(self, budget: int) -> int:
        """Epochs of the step's options, or `budget` (the recipe's epochs) if the options have none."""
        epochs = self.options.named_epochs
        return budget if epochs is None else epochs

    @property
    def steps_per_epoch(self) -> int:
        """Number of weight updates in an epoch."""
        return math.ceil(self.data.train_samples / self.options.batch_size)

    def score(self, model_or_bytes: Model | bytes, model: Model | None = None) -> Scores:
        """Measure a model or a file on the test samples, record the task's metrics, and show the progress."""
        scores = score(self.data, "test", model_or_bytes, model, BatchProgress(self.spec.step_id, self.progress))
        self.measure(scores.metrics())
        return scores

    def score_validation(self, model_or_bytes: Model | bytes, model: Model | None = None) -> None:
        """Measure a model or a file on the validation samples, and record the headline."""
        metrics = score(self.data, "validation", model_or_bytes, model).metrics()
        self.measure(validation_metric(metrics, self.headline))

    def measure_float(self, model: Model) -> None:
        """Measure a float model with or without pruning wrappers: the task's metrics, and its float32 TFLite file."""
        from tfmot_ops import core

        self.score(model)
        self.score_validation(model)
        stripped = core.strip(model)
        self.measure_tflite(core.export_tflite(stripped, FLOAT), stripped)

    def measure_tflite(self, tflite: bytes, model: Model | None = None) -> None:
        """Measure a TFLite file: sizes in bytes, shares in [0, 1], counts of TFLite ops, latency in milliseconds.

        Args:
            tflite: the file's bytes.
            model: tf_keras model from which the file was exported; used to find the kernels that the recipe prunes.
        """
        from tfmot_ops import core

        profile = core.profile_tflite(tflite)
        self.measure(self._sparsity(profile, model))
        self.measure(
            {
                "size_bytes": profile.size_bytes,
                "gzip_bytes": profile.gzip_bytes,
                "int8_mac_fraction": profile.int8_mac_fraction,
                "float_ops": profile.float_ops,
                "requantize_ops": profile.requantize_ops,
                "latency_ms": core.latency_ms(tflite, threads=1).median,
            }
        )

    def _sparsity(self, profile: TFLiteProfile, model: Model | None) -> dict[str, float]:
        """Share of zeros in the file's weight tensors: in the pruned kernels, or in all without pruning."""
        from tfmot_ops.core.measure.kernel_sparsity import pruned_kernels_in_file

        if model is None or self.options.named_recipe is None or self.recipe.sparsity is None:
            return {"sparsity": profile.weight_sparsity}
        found = pruned_kernels_in_file(profile, model, self.recipe)
        size = sum(count for count, _ in found)
        if not size:
            return {"sparsity": profile.weight_sparsity}
        zeros = sum(count * sparsity for count, sparsity in found)
        return {"sparsity": zeros / size, "least_layer_sparsity": min(sparsity for _, sparsity in found)}


class BatchProgress:
    """Reports how many samples are measured, if that takes long.

    Args:
        step_id: name of the step.
        progress: gets a message every few seconds.
    """

    def __init__(self, step_id: str, progress: Progress) -> None:
        self._step_id, self._progress = step_id, progress
        self._next = time.monotonic() + _SECONDS_BETWEEN

    def __call__(self, done: int, samples: int) -> None:
        """Called when `done` of `samples` are measured."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS_BETWEEN
            self._progress.message(f"{self._step_id}: {done} of {samples} test samples measured")
