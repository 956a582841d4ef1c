"""The MLflow run of one step: found by its key or created, updated during the step, ended with the step's result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from mlflow.entities import LoggedModelInput

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
from tfmot_ops.system.uri_secrets import hide
from tfmot_ops.tracking import closing
from tfmot_ops.tracking.artifacts import put_json
from tfmot_ops.tracking.children import KEY_TAG, KIND_TAG, PARENT_TAG, RESULT, STEP_TAG
from tfmot_ops.tracking.client import MlflowStore, connect
from tfmot_ops.tracking.creating import create_run
from tfmot_ops.tracking.datasets import EVALUATION, TRAINING, dataset_of, log_dataset
from tfmot_ops.tracking.epochs import EpochLog
from tfmot_ops.tracking.labels import named_by, run_name, spec_tags, tags_of
from tfmot_ops.tracking.model_card import put_card
from tfmot_ops.tracking.models import (
    data_of_model,
    log_keras_model,
    model_of_file,
    model_of_version,
    register_tflite,
    tell_file,
)
from tfmot_ops.tracking.owner import owner_tag
from tfmot_ops.tracking.patience import briefly, tell_waits_to
from tfmot_ops.tracking.pictures import put_pictures
from tfmot_ops.tracking.registry import champion_of, promote
from tfmot_ops.tracking.sweep_runs import log_sweep
from tfmot_ops.tracking.writing import Measured, log_metrics, log_params, log_tags

_LAYER_TABLE = "layers.json"
# Metrics of summarize and forecast that count regressions; above 0 they fail the run.
_WORSE = ("regressions", "missing", "worse")
# Kinds that change weights; the data set of the others is an input for measuring.
_TRAINS = {"train", "fine_tune", "quantize"}


class StepRun:
    """The MLflow run of a step; implements `Progress`, so that epochs and models are logged while the step runs.

    Args:
        spec: the step; `spec.tracking` must be given.
        stays: whether this process runs the whole chain; a parent run that it opens is then ended if the process dies.
        say: called with each message on an MLflow server that does not answer.

    Raises:
        SpecError: `spec` has no tracking.
        StepFailedError: MLflow cannot be reached.
    """

    def __init__(self, spec: StepSpec, *, stays: bool = False, say: Callable[[str], None] = lambda _: None) -> None:
        if spec.tracking is None:
            raise SpecError(
                "tracking: the spec names no MLflow",
                required="tracking.uri",
                received="nothing",
                remedy="add tracking to the spec",
            )
        self._spec = spec
        self._say = say
        self._taken_up = False
        self._model_id: str | None = None
        #: Version of the champion that the rules were judged with, None for no champion; empty if none compares.
        self._compared_with: str | None = ""
        self._labels: dict[str, str] = {}
        # The process of a step `open_run` ends long before the run that it opens.
        self._recorded = spec.options.recorded
        self._owner = owner_tag() if stays or self._recorded is not Recorded.OPENING else {}
        tell_waits_to(say)
        self._client, experiment_id = connect(spec.tracking.uri, spec.tracking.experiment)
        self.run_id = self._take_up(spec, spec.tracking, experiment_id)
        self._epochs = EpochLog(self._client, self.run_id, say, taken_up=self._taken_up)
        self.store = MlflowStore(self._client, self.run_id, spec.output_uri)
        if self._recorded is Recorded.OPENING:
            log_params(self._client, self.run_id, cast("OpenRunOptions", spec.options).parameters)

    def _take_up(self, spec: StepSpec, tracking: Tracking, experiment_id: str) -> str:
        if self._recorded.is_on_the_parent and tracking.parent_run_id:
            return tracking.parent_run_id
        tags = {f"{KEY_TAG}.{name}": value for name, value in tracking.key.items()}
        tags |= {STEP_TAG: spec.step_id, KIND_TAG: spec.options.kind, **self._owner}
        self._labels = spec_tags(self._client, spec)
        if tracking.parent_run_id:
            tags[PARENT_TAG] = tracking.parent_run_id
        if tracking.key:
            # A digest of the key, as a DAG's run id may hold quotes, which would break the query.
            text = json.dumps([tracking.key, spec.options.kind], sort_keys=True)
            tags[KEY_TAG] = hashlib.sha256(text.encode()).hexdigest()
            found = self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'", max_results=1)
            if found:
                self._taken_up = True
                run_id = str(found[0].info.run_id)
                # Before the status, which without its process is mended.
                log_tags(self._client, run_id, {**self._labels, **self._owner})
                self._client.update_run(run_id, status="RUNNING")
                return run_id
        return create_run(self._client, experiment_id, tags={**self._labels, **tags}, run_name=run_name(spec))

    def message(self, text: str) -> None:
        """Does nothing: messages go to the log, not to the run."""

    def epoch(self, stage: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch at once, as `epoch.<name>`, so that a chart grows while the step works."""
        del stage, epochs
        self._epochs.add(epoch, metrics)

    def restored(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch of an earlier attempt, unless the run has them."""
        self._epochs.add(epoch, metrics, is_restored=True)

    def model(self, model: Any, example: Any) -> None:
        """Log the model the step made; `finish` gives it the step's metrics."""
        name = f"{named_by(self._labels)} {self._spec.step_id}".strip()
        self._model_id = log_keras_model(self._client, self.run_id, model, example, name=name, tags=self._model_tags())

    def _model_tags(self) -> dict[str, str]:
        """Tags of a model that this step logs."""
        tags = {**self._labels, STEP_TAG: self._spec.step_id, KIND_TAG: self._spec.options.kind}
        if self._spec.tracking and self._spec.tracking.parent_run_id:
            tags[PARENT_TAG] = self._spec.tracking.parent_run_id
        return tags

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
        self._epochs.send()
        match self._recorded:
            case Recorded.CLOSING:
                closing.end_what_was_killed(self._client, self.run_id)
                closing.close(self._client, self.run_id, cast("CloseRunOptions", self._spec.options), workdir)
            case Recorded.SWEEP if ended_well:
                log_sweep(self._client, self.run_id, workdir)
            case _:
                self._record(result, workdir)
        if self._recorded is Recorded.VERSION and ended_well:
            result = self._registered(result, workdir)
            put_json(self._client, self.run_id, result.model_dump(mode="json"), RESULT)
        if self._recorded.is_on_the_parent:
            closing.end_what_was_killed(self._client, self.run_id)
        self._end(result)
        return result

    def kill(self) -> None:
        """End the run as KILLED after a signal; a parent run is left to the process that opened it."""
        if not self._recorded.is_on_the_parent:
            with briefly():
                self._client.set_terminated(self.run_id, "KILLED")

    def _registered(self, result: StepResult, workdir: Path) -> StepResult:
        """The result with the version that its file has in the model registry."""
        artifact = self._spec.inputs["tflite"]
        tflite = self.store.fetch(artifact, workdir / "register")
        options = cast("RegisterOptions", self._spec.options)
        parent = self._spec.tracking.parent_run_id if self._spec.tracking else None
        labels = self._model_tags()
        version = register_tflite(
            self._client, self.run_id, tflite, artifact.sha256, options, labels=labels, parent=parent
        )
        self._rank(options, version, artifact.sha256)
        put_card(self._client, self.run_id, version, options, tflite=artifact, parent=parent)
        parameters = {**result.parameters, "registered_version": version}
        if options.promote:
            done = promote(self._client, options.name, version, to=options.champion_alias, expected=self._compared_with)
            parameters["replaced_version"] = done.replaced
        return result.model_copy(update={"parameters": parameters})

    def _rank(self, options: RegisterOptions, version: str, sha256: str) -> None:
        """Name the data set of the figures on the logged model of a version, so that MLflow compares it with others."""
        source = model_of_file(self._client, self.run_id, sha256)
        data = data_of_model(self._client, source) if source is not None else None
        model_id = model_of_version(self._client, options.name, version)
        if data is not None and model_id is not None:
            log_metrics(self._client, self.run_id, options.metrics, Measured(model_id, dataset=data))

    def metrics_of_champion(self, options: RegisterOptions) -> dict[str, float] | None:
        """The metrics of the present champion; None without one, or if this step itself made it in an earlier attempt.

        A promotion by this step then fails if another version has become the champion meanwhile.
        """
        champion = champion_of(self._client, options.name, options.champion_alias)
        self._compared_with = champion.version if champion else None
        return champion.metrics if champion and champion.run_id != self.run_id else None

    def _record(self, result: StepResult, workdir: Path) -> None:
        """Record all of a result; the artifact that holds it comes last, as it tells a next start that all is there."""
        client, ended_well = self._client, result.status is Status.OK
        log_tags(client, self.run_id, {**tags_of(result.parameters), **self._labels})
        log_params(
            client, self.run_id, {**result.parameters, "seed": self._spec.seed, "versions": dict(result.versions)}
        )
        data = dataset_of(result.parameters)
        if data is not None:
            log_dataset(client, self.run_id, data, TRAINING if result.kind in _TRAINS else EVALUATION)
        measured = Measured(self._measured_model(result), is_own=self._model_id is not None, dataset=data)
        log_metrics(client, self.run_id, result.metrics, measured)
        if result.layers:
            self._log_layers(result)
        if result.kind == "evaluate" and ended_well:
            parent = self._spec.tracking.parent_run_id if self._spec.tracking else None
            put_pictures(client, self.run_id, parent, result, workdir)
        put_json(client, self.run_id, result.model_dump(mode="json"), RESULT)

    def _measured_model(self, result: StepResult) -> str | None:
        """Id of the logged model whose metrics the step's are: its own, or the one from which its file was made."""
        if self._model_id is not None:
            if "tflite" in result.outputs:
                tell_file(self._client, self._model_id, result.outputs["tflite"].sha256)
            return self._model_id
        tflite = self._spec.inputs.get("tflite")
        if tflite is None or self._recorded is Recorded.VERSION:  # a registered file is a logged model of its own
            return None
        model_id = model_of_file(self._client, self.run_id, tflite.sha256)
        if model_id is not None:
            self._client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])
        return model_id

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
        if isinstance(options, CloseRunOptions):
            failed = failed or closing.has_failed_mapped_step(self._client, self.run_id, options)
            failed = failed or closing.has_failed_registration(self._client, self.run_id)
        if result.error is not None:
            self._client.set_tag(self.run_id, closing.NOTE, f"```\n{hide(result.error.message)}\n```")
        elif self._taken_up and closing.NOTE in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, closing.NOTE)  # the error of an earlier attempt
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
