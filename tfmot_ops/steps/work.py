"""The state of a running step: its options, recipe and data set, its inputs and outputs, and its metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from pydantic import JsonValue

from tfmot_ops.contract import (
    Artifact,
    ArtifactFormat,
    DataOptions,
    LayerReport,
    Quantization,
    Recipe,
    StepOptions,
    StepSpec,
)
from tfmot_ops.errors import SpecError
from tfmot_ops.steps.resume import StepCheckpoint
from tfmot_ops.store import SUFFIXES, Store

#: Quantization with which a float model is exported, to be measured as a float32 TFLite file.
FLOAT = Recipe(name="float32")
_EXAMPLE_SAMPLES = 4


class Progress(Protocol):
    """Receives the progress of a step."""

    def message(self, text: str) -> None:
        """Called with one line of text for the user."""

    def epoch(self, stage: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Called when epoch number `epoch` (from 1) of `epochs` has ended with these metrics."""

    def model(self, model: Any, example: Any) -> None:
        """Called with the tf_keras model that the step made; `example` is a batch of its input, [samples, ...]."""


#: The options of the kind of step.
AnyOptions = TypeVar("AnyOptions", bound=StepOptions)
#: The options of a kind that computes with a model.
ModelOptions = TypeVar("ModelOptions", bound=DataOptions)


@dataclass
class Work(Generic[AnyOptions]):
    """A running step: its spec, store and work folder, and the outputs, metrics and parameters it has so far."""

    spec: StepSpec
    store: Store
    workdir: Path
    progress: Progress
    outputs: dict[str, Artifact] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, JsonValue] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)

    @property
    def options(self) -> AnyOptions:
        """The options of the step, typed as the class of its kind."""
        return cast("AnyOptions", self.spec.options)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the step; a recipe's name is decoded.

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
        return recipe

    def path(self, name: str) -> Path:
        """Fetch and verify an input artifact at each call, and return the path of the local copy."""
        return self.store.fetch(self.spec.inputs[name], self.workdir / "inputs" / name)

    def put_bytes(self, data: bytes, name: str, artifact_format: ArtifactFormat) -> None:
        """Save an output that is not a model."""
        path = self.workdir / (name + SUFFIXES[artifact_format])
        path.write_bytes(data)
        self.outputs[name] = self.store.put(path, name, artifact_format)

    def measure(self, metrics: Mapping[str, float]) -> None:
        """Record the metrics with a finite value; NaN or infinity means that a metric could not be measured."""
        self.metrics |= {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


@dataclass
class ModelWork(Work[ModelOptions]):
    """A running step that computes with a model: also has a data set and a training checkpoint."""

    checkpoint: StepCheckpoint | None = None

    @cached_property
    def data(self) -> Any:
        """The data set, split by the seed of the spec."""
        from tfmot_ops.data.splits import load_dataset

        data = load_dataset(self.options.dataset, seed=self.spec.seed, limit=self.options.limit)
        self.parameters |= {"dataset": self.options.dataset, "dataset_digest": data.digest}
        self.parameters |= {"dataset_train_samples": len(data.x_train), "batch_size": self.options.batch_size}
        return data

    @property
    def calibration(self) -> Any:
        """Samples for measuring the ranges of activations, [samples, ...]."""
        quantization = self.recipe.quantization or Quantization()
        return self.data.x_calibration[: quantization.calibration_samples]

    def load_model(self) -> Any:
        """The input `model`."""
        from tfmot_ops import core

        return core.load_model(self.path("model"))

    def put_model(self, model: Any) -> None:
        """Save the output `model`, and record its compile configuration as a parameter."""
        from tfmot_ops import core
        from tfmot_ops.core.keras.compiling import compile_parameters

        path = self.workdir / "model.h5"
        core.save_model(model, path)
        self.outputs["model"] = self.store.put(path, "model", ArtifactFormat.KERAS_H5)
        self.parameters["compile"] = dict(compile_parameters(model))
        self.progress.model(model, self.data.x_calibration[:_EXAMPLE_SAMPLES])

    def epochs(self, budget: int) -> int:
        """Epochs of the step's options, or `budget` (the recipe's epochs) if the options have none."""
        epochs = self.options.named_epochs
        return budget if epochs is None else epochs

    @property
    def steps_per_epoch(self) -> int:
        """Number of weight updates in an epoch."""
        return math.ceil(len(self.data.x_train) / self.options.batch_size)

    def fit(
        self, model: Any, epochs: int, callbacks: Any = (), *, rate: float | None = None, rate_factor: float = 1.0
    ) -> None:
        """Train a compiled model in place on the data set; continues from the checkpoint of a killed attempt.

        Args:
            model: compiled tf_keras model.
            epochs: passes over the training samples; 0 trains nothing.
            callbacks: Keras callbacks.
            rate: learning rate; None takes the compiled learning rate times `rate_factor`.
            rate_factor: see `rate`; a compiled learning rate schedule is not scaled.
        """
        from tfmot_ops.core.training.loop import fit

        if not epochs:
            self.parameters["epochs"] = 0
            return
        kind, data = self.spec.options.kind, self.data
        targets = self.targets(model)
        self.checkpoint = StepCheckpoint(self.spec, self.workdir, self.progress.message)
        with _learning_rate(model, rate, rate_factor):
            used = model.optimizer.get_config()["learning_rate"]
            used = f"{used:.6g}" if isinstance(used, Real) else str(used)
            self.parameters |= {"epochs": epochs, "learning_rate": used}
            fit(
                model,
                data.x_train,
                targets(data.y_train),
                (data.x_validation, targets(data.y_validation)),
                epochs=epochs,
                batch_size=self.options.batch_size,
                seed=self.spec.seed,
                callbacks=callbacks,
                on_epoch=lambda epoch, of, metrics: self.progress.epoch(kind, epoch, of, metrics),
                checkpoint=self.checkpoint.open(),
            )

    def targets(self, model: Any) -> Callable[[Any], Any]:
        """Function that turns labels into the targets of the model's loss: labels or one-hot vectors."""
        from tfmot_ops.tasks import classifier_loss

        data = self.data
        x, labels = data.x_train[:_EXAMPLE_SAMPLES], data.y_train[:_EXAMPLE_SAMPLES]
        targets = classifier_loss.targets_for(model, x, labels, data.num_classes)
        if classifier_loss.is_one_hot(targets(labels)):
            self.progress.message(
                f"{self.spec.options.kind}: the model's loss needs one-hot vectors; the labels are converted"
            )
        return targets

    def measure_float(self, model: Any) -> None:
        """Measure a float model with or without pruning wrappers: accuracy in [0, 1], and its float32 TFLite file."""
        from tfmot_ops import core

        data = self.data
        self.measure(core.evaluate(model, data.x_test, data.y_test))
        self.measure({"validation_accuracy": core.evaluate(model, data.x_validation, data.y_validation)["accuracy"]})
        stripped = core.strip(model)
        self.measure_tflite(core.export_tflite(stripped, FLOAT), stripped)

    def measure_tflite(self, tflite: bytes, model: Any = None) -> None:
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

    def _sparsity(self, profile: Any, model: Any) -> dict[str, float]:
        """Share of zeros in the file's weight tensors: in the pruned kernels, or in all without pruning."""
        from tfmot_ops.core.pruning.sparsity import prunable

        if model is None or self.options.named_recipe is None or self.recipe.sparsity is None:
            return {"sparsity": profile.weight_sparsity}
        zeros, size, lowest_sparsity = 0.0, 0, 1.0
        for layer, _ in prunable(model, self.recipe).values():
            # The export puts the layer's name into the tensor's name.
            names = [name for name in profile.sparsity if f"L.{layer.name}/" in name]
            if names:
                # A separable convolution has two kernels; the kernel with more zeros is the pruned one.
                name = max(names, key=profile.sparsity.__getitem__)
                zeros += profile.sparsity[name] * profile.weight_sizes[name]
                size += profile.weight_sizes[name]
                lowest_sparsity = min(lowest_sparsity, profile.sparsity[name])
        return {"sparsity": zeros / size, "least_layer_sparsity": lowest_sparsity} if size else {}


@contextlib.contextmanager
def _learning_rate(model: Any, rate: float | None, factor: float) -> Iterator[None]:
    """Train with another learning rate, then restore the optimizer: the next step scales the original rate."""
    compiled = model.optimizer
    try:
        config = compiled.get_config()
        # A learning rate schedule has no single rate to scale, so only an explicit rate replaces it.
        if rate is None and factor != 1.0 and isinstance(config["learning_rate"], Real):
            rate = factor * float(config["learning_rate"])
        if rate is not None:
            model.optimizer = type(compiled).from_config({**config, "learning_rate": rate})
        yield
    finally:
        model.optimizer = compiled
