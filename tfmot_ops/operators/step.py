"""StepOperator, an Airflow operator that runs one step, and one subclass for each kind of step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.log import mask_secret
from pydantic import ValidationError

from tfmot_ops.contract import Options, StepOptions, StepResult, StepSpec
from tfmot_ops.contract.refusal import quoted, refusal
from tfmot_ops.errors import SpecError, UnsupportedModelError
from tfmot_ops.operators.lineage import facets_of, lineage_of
from tfmot_ops.operators.links import MlflowRunLink, run_url
from tfmot_ops.operators.literals import refuse_inputs, refuse_options
from tfmot_ops.operators.results import artifact_of, mapping_of, results_by_step, run_id_of
from tfmot_ops.operators.server import Server, keywords_for, server_of
from tfmot_ops.recipes.files import is_recipe_file, read_policy, read_recipe, read_target, read_training
from tfmot_ops.runners import (
    OPTIONS_VARIABLE,
    PYTHONS_VARIABLE,
    ResumableRunner,
    Runner,
    RunningStep,
    check_places,
    choose_runner,
    look_up,
)
from tfmot_ops.system import environment
from tfmot_ops.system.uri_secrets import secrets_of

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

#: Fields of a StepResult that the XCom leaves out: tables, which the MLflow run holds.
_NOT_IN_XCOM = {"layers", "versions"}
#: Modules whose operators take all options and inputs from the arguments of these names: a subclass elsewhere may add
#: to them, so that the literal ones cannot be checked alone.
_COMPLETE = {__name__, "tfmot_ops.operators.register"}


class StepOperator(BaseOperator):
    """Runs one step with a runner, and returns the step's result without its tables as the XCom.

    Airflow does not retry an invalid spec or an unsupported model (exit codes 2 and 3); it retries all other failures.

    Args:
        options: fields of the step's options (see `tfmot_ops.contract`); a subclass for one kind omits `kind`. A
            `recipe` may be a preset's name, the fields of a Recipe, or the path of a YAML or JSON file, which is read
            when the task runs. The option `python` of the kind `compat` is a name in TFMOT_OPS_FORECAST_PYTHONS.
        inputs: input name -> the result of another step (`train.output`), whose output of the same name is used, or
            the fields of an Artifact.
        runner: a Runner, a runner's name, or arguments of a runner (see `choose_runner`). The default is the DAG run's
            parameter `runner`, then the deployment's runner (`TFMOT_OPS_RUNNER` with `TFMOT_OPS_RUNNER_OPTIONS`), then
            `local`. A template may give a name but no arguments; the name is checked like the parameter `runner`.
        tracking_uri: MLflow tracking URI. The default is the connection `mlflow_conn_id`, then
            `TFMOT_OPS_TRACKING_URI`, then `MLFLOW_TRACKING_URI`, read when the task runs. Without any of them nothing
            is recorded, and `output_uri` is required.
        experiment: name of the MLflow experiment.
        parent_run: the result of an OpenRunOperator (`open_run.output`) or the id of an MLflow run.
        output_uri: folder for the outputs; None stores them as artifacts of the step's MLflow run.
        seed: random seed of the step.
        device: `cpu` or `gpu`.
        mlflow_conn_id: Airflow connection of MLflow (see `MlflowHook`), by which the step records and the task's link
            is made; the step gets its credentials as environment variables. The default is `TFMOT_OPS_MLFLOW_CONN_ID`.
            With a `tracking_uri` it is for the link only. Without a connection, the link leads to
            `TFMOT_OPS_MLFLOW_UI`, then an http tracking URI, then http://127.0.0.1:5000.
    """

    #: Kind of the step; a subclass sets it, and StepOperator itself takes it from `options["kind"]`.
    kind: ClassVar[str | None] = None

    template_fields: Sequence[str] = (
        "options",
        "inputs",
        "runner",
        "tracking_uri",
        "experiment",
        "parent_run",
        "output_uri",
        "seed",
        "device",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"options": "json", "inputs": "json"}
    operator_extra_links: Sequence[BaseOperatorLink] = (MlflowRunLink(),)
    ui_color = "#e8eef7"

    def __init__(
        self,
        *,
        options: Mapping[str, Any] | Options | None = None,
        inputs: Mapping[str, Any] | None = None,
        runner: Runner | str | Mapping[str, Any] | None = None,
        tracking_uri: str | None = None,
        experiment: str = "tfmot_ops",
        parent_run: Any = None,
        output_uri: str | None = None,
        seed: int | str = 0,
        device: str = "cpu",
        mlflow_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = options
        self.inputs = inputs
        self.runner = runner
        self._written = {
            "runner": runner,
            "options": options,
            "output_uri": output_uri,
            "tracking_uri": tracking_uri,
            "inputs": inputs,
        }
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.parent_run = parent_run
        self.output_uri = output_uri
        self.seed = seed
        self.device = device
        self.mlflow_conn_id = mlflow_conn_id
        self.mlflow_run_url = ""
        self._running: RunningStep | None = None
        self._spec: StepSpec | None = None
        self._result: StepResult | None = None
        self._killed = False
        # Not in a mapped task: there the values are known when it runs, and a refusal has to say so to Airflow.
        if not getattr(self, "_BaseOperator__from_mapped", False):
            self._refuse_literals()

    def _refuse_literals(self) -> None:
        """Refuse literal arguments that the step would refuse, as far as a subclass does not add to them.

        Raises:
            SpecError: an option is unknown or wrong, or a required option or input is missing.
        """
        if self._options.__module__ in _COMPLETE:
            refuse_options(self.task_id, self.kind, self.options)
        if self._inputs.__module__ in _COMPLETE:
            refuse_inputs(self.task_id, self.kind, self.inputs)

    def _do_render_template_fields(self, parent: Any, *arguments: Any, **keywords: Any) -> None:
        """Render the templates, then mask secrets: Airflow shows the rendered fields, also of mapped tasks."""
        super()._do_render_template_fields(parent, *arguments, **keywords)
        if parent is self:
            self._mask_secrets()

    def _mask_secrets(self) -> None:
        """Register secrets in URIs with Airflow, which then writes `***` for them in logs, pages and its database."""
        inputs = self.inputs.values() if isinstance(self.inputs, Mapping) else ()
        uris = [artifact.get("uri") for artifact in inputs if isinstance(artifact, Mapping)]
        uris += [self.tracking_uri, self.output_uri, *environment.tracking_uris()]
        for secret in secrets_of(*(uri for uri in uris if isinstance(uri, str))):
            mask_secret(secret)

    def execute(self, context: Context) -> dict[str, Any]:
        """Build the spec, run the step, and return its result without the tables."""
        return self._run(context, None)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Resume after a deferral; the Kubernetes provider's operator defers with this method's name.

        The spec and the runner are built again from the operator's arguments, as a new process calls this method.
        """
        return self._run(context, event)

    def _run(self, context: Context, event: dict[str, Any] | None) -> dict[str, Any]:
        try:
            spec = self._spec = self.build_spec(context)
            runner, secrets = self._choose_runner(context), self._server().secrets
            if event is None:
                self._running = runner.start(spec, context, self.log.info, **keywords_for(runner.start, secrets))
            else:
                resume = _resumable(runner).resume
                self._running = resume(spec, context, self.log.info, event, **keywords_for(resume, secrets))
            if self._killed:  # on_kill was called before the step was started
                self._running.kill()
            result = self._running.wait()
        except (SpecError, UnsupportedModelError) as error:
            # The same request would fail again, so Airflow must not retry it.
            raise AirflowFailException(str(error)) from error
        finally:
            left = self._result = self._running.result if self._running is not None else None
            self._running = None
            # Also for a failed step, as the user will open its MLflow run.
            if left is not None and left.tracking_run_id:
                self.mlflow_run_url = run_url(self._server().ui, left.tracking_run_id)
        answer = result.model_dump(mode="json", exclude=_NOT_IN_XCOM)
        self._judge(answer, context)
        return answer

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """What the step read and wrote, for Airflow's OpenLineage provider, which also calls it after a failure.

        Returns:
            An OperatorLineage; None for a step that was not started, and where the provider is not installed.
        """
        del task_instance
        return facets_of(lineage_of(self._spec, self._result)) if self._spec is not None else None

    def _choose_runner(self, context: Context) -> Runner:
        parameter = context["params"].get("runner")
        if self.runner is None or self.runner == self._written["runner"]:
            return choose_runner(self.runner, parameter)
        # The value comes from a template, so the user who triggered the DAG run may have written it.
        if isinstance(self.runner, str):
            return choose_runner(None, self.runner)
        raise SpecError(
            f"task {self.task_id}: a template gives arguments of a runner",
            required="a template that gives a runner's name, or arguments without templates",
            received=quoted(self.runner),
            remedy=f"write the arguments in the DAG's file, or in the deployment's {OPTIONS_VARIABLE}",
        )

    def _inputs(self) -> Mapping[str, Any]:
        """The step's inputs; a subclass may gather them from other arguments."""
        return mapping_of(self.task_id, "inputs", self.inputs)

    def _judge(self, answer: dict[str, Any], context: Context) -> None:
        """Called with the result of a step that succeeded; a subclass may raise an exception to fail the task."""

    def on_kill(self) -> None:
        """Kill the step and all its processes."""
        self._killed = True
        if self._running is not None:
            self._running.kill()

    def build_spec(self, context: Context) -> StepSpec:
        """The StepSpec of this task.

        Raises:
            SpecError: a field is invalid; the message names the field.
        """
        self._refuse_literals()
        check_places({name: getattr(self, name) for name in self._written}, self._written)
        document = {
            "step_id": self.task_id,
            "inputs": {name: artifact_of(name, value) for name, value in self._inputs().items()},
            "output_uri": self.output_uri,
            "seed": self.seed,
            "device": self.device,
            "tracking": self._tracking(context),
            "options": self._options(context),
        }
        try:
            return StepSpec.model_validate(document)
        except ValidationError as error:
            remedy = "correct the operator's arguments or the run's parameters"
            raise refusal(f"task {self.task_id}", error, remedy) from error

    def _options(self, context: Context) -> dict[str, Any]:
        """The options as plain data, with the content of the files that they name (recipe, training plan, target)."""
        del context  # only CloseRunOperator uses it
        given = self.options.model_dump(mode="json") if isinstance(self.options, StepOptions) else self.options
        options = dict(mapping_of(self.task_id, "options", given))
        options.setdefault("kind", self.kind)
        if options["kind"] == "compat" and options.get("python") is not None:
            options["python"] = look_up(PYTHONS_VARIABLE, options["python"])
        for name, read in (("recipe", read_recipe), ("training", read_training), ("target", read_target)):
            value = options.get(name)
            if isinstance(value, str) and is_recipe_file(value):
                options[name] = read(value)
        policy = options.get("policy")
        if isinstance(policy, str):
            options["policy"] = read_policy(policy) if policy else None
        return options

    def _server(self) -> Server:
        """The MLflow server of this task."""
        return server_of(self.tracking_uri, self.mlflow_conn_id)

    def _tracking(self, context: Context) -> dict[str, Any] | None:
        """The spec's field `tracking`, as plain data, so that it is checked with the other fields."""
        uri = self._server().uri
        if not uri:
            return None
        ti = context["ti"]
        key = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": ti.map_index}
        return {
            "uri": uri,
            "experiment": self.experiment,
            "parent_run_id": run_id_of(self.parent_run),
            # A retry has the same key, so it continues its MLflow run.
            "key": {name: str(value) for name, value in key.items()},
        }


class OpenRunOperator(StepOperator):
    """Opens the MLflow parent run; the runs of the steps become its children. Options: `name`, `parameters`.

    Without a name the run is named by the parameters `model`, `dataset` and `recipe`. If the parameter `recipe_file`
    names a recipe file, it is read, and the recipe in it takes the place of the parameter `recipe`.
    """

    kind = "open_run"

    def _options(self, context: Context) -> dict[str, Any]:
        options = super()._options(context)
        parameters = options.get("parameters") or {}
        file = parameters.get("recipe_file")
        if isinstance(file, str) and is_recipe_file(file):
            options["parameters"] = {**parameters, "recipe": read_recipe(file).model_dump(mode="json")}
        file = parameters.get("training_file")
        plan = read_training(file) if isinstance(file, str) and is_recipe_file(file) else None
        if plan is not None:
            shown = {"training": plan.model_dump(mode="json", exclude_defaults=True)}
            options["parameters"] = {**options["parameters"], **shown}
        return options


class TrainOperator(StepOperator):
    """Builds a model by name and trains it. Output `model`."""

    kind = "train"


class PruneOperator(StepOperator):
    """Puts pruning wrappers around the layers in the recipe's scope. Input and output `model`."""

    kind = "prune"


class FineTuneOperator(StepOperator):
    """Trains with the pruning schedule. Input and output `model`."""

    kind = "fine_tune"


class StripOperator(StepOperator):
    """Removes the pruning wrappers and checks the sparsity. Input and output `model`."""

    kind = "strip"


class QuantizeOperator(StepOperator):
    """Inserts quantisers, calibrates, trains, exports. Input `model`, outputs `model` and `tflite`."""

    kind = "quantize"


class EvaluateOperator(StepOperator):
    """Measures a TFLite file and compares it with the models from which it was made.

    Inputs `tflite`; `model`, the float model that was quantised; `quantized`, the QAT model, for the noise of each
    layer; `trained`, the float model before pruning, which `accuracy_drop` is against. Output `layer_sqnr` (CSV).
    """

    kind = "evaluate"


class CloseRunOperator(StepOperator):
    """Logs the steps' metrics on the parent run and ends it; use it as a teardown, so that it runs after a failure.

    Args:
        steps: step name -> its result (`train.output`), or the results of a mapped task, which get the names
            `train[0]`, `train[1]`, ... A step without a result counts as failed.
        **kwargs: as for StepOperator.
    """

    kind = "close_run"
    template_fields: Sequence[str] = (*StepOperator.template_fields, "steps")

    def __init__(self, *, steps: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps

    def _options(self, context: Context) -> dict[str, Any]:
        steps = results_by_step(self.task_id, self.steps)
        ended = {name: result.get("metrics", {}) for name, result in steps.items() if isinstance(result, Mapping)}
        failed = [name for name in steps if name not in ended]
        headlines = [result.get("headline") for result in steps.values() if isinstance(result, Mapping)]
        headline = next(filter(None, reversed(headlines)), None)
        return {"steps": ended, "failed": failed, "headline": headline, **super()._options(context)}


def _resumable(runner: Runner) -> ResumableRunner:
    if isinstance(runner, ResumableRunner):
        return runner
    raise SpecError(
        "a deferred step was resumed with a runner that cannot resume steps",
        required="the runner that started the step",
        received=repr(runner),
        remedy="clear the task, and do not change the runner while steps run",
    )
