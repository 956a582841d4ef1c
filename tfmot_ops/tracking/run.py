"""The MLflow run of one step: found by its key or created, updated during the step, ended with the step's result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.time import get_current_time_millis

from tfmot_ops.contract import (
    CloseRunOptions,
    OpenRunOptions,
    Recorded,
    RegisterOptions,
    Status,
    StepResult,
    StepSpec,
    Tracking,
)
from tfmot_ops.errors import SpecError
from tfmot_ops.system.uri_secrets import hide, hide_in
from tfmot_ops.tracking.artifacts import put_json
from tfmot_ops.tracking.client import MlflowStore, connect
from tfmot_ops.tracking.models import log_keras_model, register_tflite
from tfmot_ops.tracking.names import accepted_names
from tfmot_ops.tracking.owner import owner_tag
from tfmot_ops.tracking.sweep_runs import log_sweep

KEY_TAG = "tfmot_ops.key"
PARENT_TAG = "mlflow.parentRunId"
#: Artifact of a step's run that holds its result.
RESULT = "result.json"
_LAYER_TABLE = "layers.json"
# Limits of one MLflow request.
_PARAMS_A_BATCH = 100
_METRICS_A_BATCH = 1000
_LONGEST_PARAM = 6000

# Metrics of summarize and forecast that count regressions; above 0 they fail the run.
_WORSE = ("regressions", "missing", "worse")

_FINAL_STEPS = ("quantize", "evaluate")
# Metrics of the last of these steps go on the parent run with these names, so that pipelines can be compared.
_FINAL = {
    "accuracy": "int8_accuracy",
    "float_accuracy": "float_accuracy",
    "accuracy_drop": "accuracy_drop",
    "pruned_accuracy": "pruned_accuracy",
    "pruning_drop": "pruning_drop",
    "quantization_drop": "quantization_drop",
    "compression": "compression",
    "sparsity": "final_sparsity",
    "size_bytes": "tflite_size_bytes",
    "gzip_bytes": "tflite_gzip_bytes",
    "int8_mac_fraction": "int8_mac_fraction",
    "latency_ms": "tflite_latency_ms",
}


class StepRun:
    """The MLflow run of a step; implements `Progress`, so that epochs and models are logged while the step runs.

    Args:
        spec: the step; `spec.tracking` must be given.
        stays: whether this process runs the whole chain; a parent run that it opens is then ended if the process dies.

    Raises:
        SpecError: `spec` has no tracking.
        StepFailedError: MLflow cannot be reached.
    """

    def __init__(self, spec: StepSpec, *, stays: bool = False) -> None:
        if spec.tracking is None:
            raise SpecError(
                "tracking: the spec names no MLflow",
                required="tracking.uri",
                received="nothing",
                remedy="add tracking to the spec",
            )
        self._spec = spec
        self._taken_up = False
        # The process of a step `open_run` ends long before the run that it opens.
        self._recorded = spec.options.recorded
        self._owner = owner_tag() if stays or self._recorded is not Recorded.OPENING else {}
        self._client, experiment_id = connect(spec.tracking.uri, spec.tracking.experiment)
        self.run_id = self._take_up(spec, spec.tracking, experiment_id)
        self.store = MlflowStore(self._client, self.run_id, spec.output_uri)
        if self._recorded is Recorded.OPENING:
            self._log_params(cast("OpenRunOptions", spec.options).parameters)

    def _take_up(self, spec: StepSpec, tracking: Tracking, experiment_id: str) -> str:
        if self._recorded.is_on_the_parent and tracking.parent_run_id:
            return tracking.parent_run_id
        tags = {f"{KEY_TAG}.{name}": value for name, value in tracking.key.items()}
        tags |= {"tfmot_ops.step_id": spec.step_id, "tfmot_ops.kind": spec.options.kind, **self._owner}
        if tracking.parent_run_id:
            tags[PARENT_TAG] = tracking.parent_run_id
        if tracking.key:
            # A digest of the key, as a DAG's run id may hold quotes, which would break the query.
            text = json.dumps([tracking.key, spec.options.kind], sort_keys=True)
            tags[KEY_TAG] = hashlib.sha256(text.encode()).hexdigest()
            found = self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'", max_results=1)
            if found:
                self._taken_up = True
                for name, value in self._owner.items():  # before the status, which without its process is mended
                    self._client.set_tag(found[0].info.run_id, name, value)
                self._client.update_run(found[0].info.run_id, status="RUNNING")
                return str(found[0].info.run_id)
        opens = self._recorded is Recorded.OPENING
        name = cast("OpenRunOptions", spec.options).name if opens else spec.step_id
        run: Run = self._client.create_run(experiment_id, tags=tags, run_name=hide(name))
        return str(run.info.run_id)

    def message(self, text: str) -> None:
        """Does nothing: messages go to the log, not to the run."""

    def epoch(self, stage: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch at once, as `epoch.<name>`, so that a chart grows while the step works."""
        del stage, epochs
        if self._taken_up and metrics:
            known = self._client.get_metric_history(self.run_id, f"epoch.{next(iter(metrics))}")
            if epoch in {each.step for each in known}:
                return  # logged by an earlier attempt that was killed before it saved the epoch's checkpoint
        self._log_metrics({f"epoch.{name}": value for name, value in metrics.items()}, step=epoch)

    def model(self, model: Any, example: Any) -> None:
        """Log the model the step made."""
        log_keras_model(self._client, self.run_id, model, example)

    def finish(self, result: StepResult, workdir: Path) -> StepResult:
        """Record the result and end the run.

        Args:
            result: how the step ended, also when it failed.
            workdir: local folder for files in passing.

        Returns:
            The result with the id of its run.
        """
        result = result.model_copy(update={"tracking_run_id": self.run_id})
        ended_well = result.status is Status.OK
        match self._recorded:
            case Recorded.CLOSING:
                self._log_metrics(summary(cast("CloseRunOptions", self._spec.options).steps))
            case Recorded.SWEEP if ended_well:
                log_sweep(self._client, self.run_id, workdir)
            case _:
                self._record(result)
        if self._recorded is Recorded.VERSION and ended_well:
            result = self._registered(result, workdir)
        if self._recorded.is_on_the_parent:
            self._end_what_was_killed()
        self._end(result)
        return result

    def kill(self) -> None:
        """End the run as KILLED after a signal; a parent run is left to the process that opened it."""
        if not self._recorded.is_on_the_parent:
            self._client.set_terminated(self.run_id, "KILLED")

    def _registered(self, result: StepResult, workdir: Path) -> StepResult:
        """The result with the version that its file has in the model registry."""
        artifact = self._spec.inputs["tflite"]
        tflite = self.store.fetch(artifact, workdir / "register")
        options = cast("RegisterOptions", self._spec.options)
        version = register_tflite(self._client, self.run_id, tflite, artifact.sha256, options)
        return result.model_copy(update={"parameters": {**result.parameters, "registered_version": version}})

    def _record(self, result: StepResult) -> None:
        self._log_params({**result.parameters, "seed": self._spec.seed, "versions": dict(result.versions)})
        self._log_metrics(result.metrics)
        if result.layers:
            self._log_layers(result)
        put_json(self._client, self.run_id, result.model_dump(mode="json"), RESULT)

    def _log_layers(self, result: StepResult) -> None:
        # Not with log_table, which would append to the table of an earlier attempt.
        rows = [layer.model_dump(mode="json") for layer in result.layers]
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        put_json(self._client, self.run_id, table, _LAYER_TABLE)
        self._client.set_tag(
            self.run_id, "mlflow.loggedArtifacts", json.dumps([{"path": _LAYER_TABLE, "type": "table"}])
        )

    def _end(self, result: StepResult) -> None:
        options = self._spec.options
        if self._recorded is Recorded.OPENING and result.status is Status.OK:
            return  # the parent stays open for the steps to come
        failed = result.status is not Status.OK or bool(getattr(options, "failed", ()))
        failed = failed or any(result.metrics.get(name) for name in _WORSE)
        if result.error is not None:
            self._client.set_tag(self.run_id, "mlflow.note.content", f"```\n{result.error.message}\n```")
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")

    def _end_what_was_killed(self) -> None:
        """End child runs that are still RUNNING at the end of a chain: their processes were killed."""
        experiment = self._client.get_run(self.run_id).info.experiment_id
        running = f"tags.`{PARENT_TAG}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment], running):
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        now = get_current_time_millis()
        names = accepted_names(metrics)
        entities = [Metric(names[name], float(value), now, step) for name, value in metrics.items()]
        for batch in _batches(entities, _METRICS_A_BATCH):
            self._client.log_batch(self.run_id, metrics=batch)

    def _log_params(self, parameters: Mapping[str, Any]) -> None:
        """Log parameters with dotted names. MLflow cannot change a parameter; a value that a retry changes is a tag."""
        known = self._client.get_run(self.run_id).data.params
        flat = flatten(hide_in(parameters))
        names = accepted_names(flat)
        wanted = {names[name]: value[:_LONGEST_PARAM] for name, value in flat.items()}
        new = [Param(name, value) for name, value in wanted.items() if name not in known]
        for batch in _batches(new, _PARAMS_A_BATCH):
            self._client.log_batch(self.run_id, params=batch)
        changed = {name: value for name, value in wanted.items() if known.get(name, value) != value}
        self._client.log_batch(self.run_id, tags=[RunTag(f"retry.{name}", value) for name, value in changed.items()])


def summary(steps: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of a whole chain, for its parent run.

    Args:
        steps: step name -> its metrics, in the order of the chain.

    Returns:
        `<step>.<metric>` for each, and the final file's figures under plain names (`int8_accuracy`).
    """
    figures = {f"{step}.{name}": value for step, metrics in steps.items() for name, value in metrics.items()}
    # Only from steps that measure the final file: a chain that failed earlier has no int8 model.
    for metrics in (metrics for step, metrics in steps.items() if any(part in step for part in _FINAL_STEPS)):
        figures |= {plain: metrics[name] for name, plain in _FINAL.items() if name in metrics}
    return figures


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters with dotted names, as the text MLflow keeps."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _batches(entities: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [entities[start : start + size] for start in range(0, len(entities), size)]
