"""A chain in a real MLflow store, recorded as the command and the operators record it, without its computations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_ops.contract import (
    ArtifactFormat,
    CloseRunOptions,
    EvaluateOptions,
    Headline,
    OpenRunOptions,
    QuantizeOptions,
    Status,
    StepResult,
    StepSpec,
    Tracking,
    TrainOptions,
)
from tfmot_ops.tracking import StepRun
from tfmot_ops.tracking.client import connect

DATA = {"dataset": "digits", "dataset_digest": "ab" * 32, "task": "classification", "dataset_train_samples": 180}
SCHEMA = {"x": "float32 [N, 4]", "y": "int64 [N]"}
EVALUATED = {
    "accuracy": 0.9,
    "float_accuracy": 0.95,
    "accuracy_drop": 0.05,
    "pruned_accuracy": 0.92,
    "pruning_drop": 0.03,
    "quantization_drop": 0.02,
    "compression": 3.5,
    "sparsity": 0.5,
    "size_bytes": 2000.0,
    "gzip_bytes": 1000.0,
    "int8_mac_fraction": 1.0,
    "latency_ms": 0.5,
    "validation_accuracy": 0.91,
    "float_ops": 0.0,
    "arena_bytes": 4096.0,
    "worst_layer_sqnr_db": 20.0,
    "agreement": 0.97,
}
CSV = "path,class_name,float_to_qat_db,qat_to_tflite_db,float_to_tflite_db\na,Dense,20.0,40.0,19.0\nb,ReLU,,,inf\n"
DETAILS = {
    "confusion_matrix": {"kind": "confusion", "classes": ["a", "b"], "counts": [[5, 1], [0, 4]]},
    "error_plot": {"kind": "scatter", "targets": [1.0, 2.0, 3.0], "predictions": [1.1, 2.2, 2.9]},
    "error_histogram": {"kind": "errors", "normal": [0.1, 0.2, 0.1], "anomalous": [0.5, 0.9]},
}


class Store:
    """A chain in an MLflow store, recorded step by step as the command and the operators do."""

    def __init__(self, folder: Path, recipe: str = "sparse50_wi8_ai8") -> None:
        self.folder, self.recipe = folder, recipe
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client, _ = connect(self.uri, "another")
        self.parent: str | None = None

    def spec(self, options: Any, **fields: Any) -> StepSpec:
        key = {"run_id": self.recipe, "task_id": options.kind}
        tracking = Tracking(uri=self.uri, parent_run_id=self.parent, key=key)
        return StepSpec(step_id=options.kind, tracking=tracking, options=options, **fields)

    def step(self, options: Any, *, model: Any = None, files: Any = (), inputs: Any = (), **fields: Any) -> StepResult:
        spec = self.spec(options, inputs=dict(inputs))
        run = StepRun(spec)
        workdir = self.folder / f"{self.recipe}-{spec.step_id}"
        workdir.mkdir(exist_ok=True)
        outputs = {}
        for name, (text, form) in dict(files).items():
            path = workdir / name
            path.write_text(text)
            outputs[name] = run.store.put(path, name, form)
        if options.named_epochs:
            run.epoch(options.kind, 1, 2, {"loss": 1.0, "val_loss": 1.1, "accuracy": 0.5, "val_accuracy": 0.4})
            run.epoch(options.kind, 2, 2, {"loss": 0.5, "val_loss": 0.8, "accuracy": 0.7, "val_accuracy": 0.6})
        if model is not None:
            run.model(model, np.zeros((2, 4), np.float32))
        told = {"status": Status.OK, "spec_sha256": spec.sha256(), "outputs": outputs, "duration_s": 2.0, **fields}
        return run.finish(StepResult(step_id=spec.step_id, kind=options.kind, **told), workdir)

    def open(self, **parameters: Any) -> None:
        given = {"model": "/models/own net.h5", "dataset": "digits", "recipe": self.recipe, **parameters}
        self.parent = None
        self.parent = self.step(OpenRunOptions(parameters=given)).tracking_run_id

    def chain(self, model: Any, accuracy: float = 0.9, details: str = "confusion_matrix") -> None:
        self.open()
        shared = {"headline": Headline(name="accuracy"), "parameters": {**DATA, "dataset_schema": SCHEMA}}
        trained = self.step(
            TrainOptions(dataset="digits", model="/models/own net.h5", epochs=2),
            model=model,
            metrics={"accuracy": 0.95, "size_bytes": 7000.0},
            **shared,
        )
        quantized = self.step(
            QuantizeOptions(dataset="digits", recipe=self.recipe, epochs=2),
            model=model,
            files={"tflite": (f"bytes of {self.recipe}", ArtifactFormat.TFLITE)},
            metrics={"accuracy": accuracy, "size_bytes": 2000.0},
            **shared,
        )
        evaluated = self.step(
            EvaluateOptions(dataset="digits", recipe=self.recipe),
            inputs={"tflite": quantized.outputs["tflite"]},
            files={
                "layer_sqnr": (CSV, ArtifactFormat.CSV),
                "details": (json.dumps(DETAILS[details]), ArtifactFormat.JSON),
            },
            metrics={**EVALUATED, "accuracy": accuracy},
            **shared,
        )
        steps = {result.step_id: result.metrics for result in (trained, quantized, evaluated)}
        self.step(CloseRunOptions(steps=steps, headline=Headline(name="accuracy")))

    def run(self, kind: str = "open_run") -> Any:
        (found,) = [run for run in self.runs() if run.data.tags["tfmot_ops.kind"] == kind]
        return found

    def runs(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name("tfmot_ops")
        runs = self.client.search_runs([experiment.experiment_id])
        return [run for run in runs if run.data.tags["tfmot_ops.key.run_id"] == self.recipe]

    def files(self, run: Any, folder: str = "pictures") -> list[str]:
        return sorted(each.path for each in self.client.list_artifacts(run.info.run_id, folder))
