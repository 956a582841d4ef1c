"""Find the recipe that meets your goals on a device: train one float model, try candidates, choose the first that fits.

The candidates of the ladder are tried in rungs, each a mapped task: those that are quantised after training; those that
train with int8 rounding; those that are pruned, in two parts. The figures of a rung decide on the next one, and the
choice is the one of `tfmot-ops search`: the first that meets the goals, or the smallest with `everything`. If no
candidate meets every goal, the task `choose` fails and names the nearest ones and what each misses.

With the parameter `register`, the chosen file is then put into MLflow's model registry if the rules of `policy_file`
hold. With `promote`, the new version becomes the champion; with `approval`, only if a person says so.
"""

from typing import Any

from airflow.sdk import DAG, Param, task

from tfmot_ops.contract import SHIPPED_TARGETS
from tfmot_ops.operators import (
    CandidateOperator,
    ChooseOperator,
    CloseRunOperator,
    OpenRunOperator,
    PlanCandidatesOperator,
    RegisterOperator,
    TrainOperator,
    forms,
)
from tfmot_ops.operators.approval import ApprovePromotionOperator
from tfmot_ops.operators.search import RUNGS, candidate_resources, check_goals


def number(description: str, **bounds: Any) -> Param:
    """A field for a number that may stay empty."""
    return Param(None, type=["null", "number"], description=description, **bounds)


def size(description: str) -> Param:
    """A field for a number of bytes that may stay empty."""
    return Param(None, type=["null", "string"], pattern=r"^[0-9]+\s*[kKmM]?(i?[bB])?$", description=description)


GOALS = {
    "max_drop": number("How much worse than the float model, in points (1.0) or the metric's unit."),
    "min_metric": number("Worst value of the task's metric: 0.9 for 90 %, else in its unit."),
    "max_flash": size("Most flash on the device; 256k is 256 * 1024 bytes."),
    "max_ram": size("Most memory for activations on the device (the arena), such as 64k."),
    "max_gzip": size("Largest gzipped file, a download."),
    "max_latency_ratio": number(
        "Longest inference, as a ratio to the float32 file's, measured where the steps run.", exclusiveMinimum=0
    ),
    "max_latency": number(
        "Longest inference in ms: Vela's estimate, or measured where the steps run.", exclusiveMinimum=0
    ),
    "min_npu_share": number("Least share of operations on the NPU.", minimum=0, maximum=1),
}

# The trigger form is made from these, and a value that does not fit is refused when the run is triggered.
PARAMS = {
    **forms.model_and_data(),
    "target": Param("litert_cpu", type="string", enum=list(SHIPPED_TARGETS), description="Device the file is for."),
    **GOALS,
    "candidates": Param(
        20,
        type="integer",
        minimum=1,
        maximum=100,
        description="Most candidates to try, with those that are tried at the same time and turn out to be not needed.",
    ),
    "minutes": number("Minutes after which no further candidates are started. Empty: no limit.", exclusiveMinimum=0),
    "everything": Param(
        False,
        type="boolean",
        description="Whether to go on after a candidate has met the goals, for the whole Pareto front.",
    ),
    **forms.training_file("as the recipes say"),
    **forms.training(),
    **forms.release(),
    **forms.place(),
}

# Rendered as native objects, so a number stays a number and an empty field stays None.
TRAINING = {"model": "{{ params.model }}", "training": "{{ params.training_file }}", **forms.DATA}
# The run of the chosen candidate's chain, so that the card of the version tells its steps.
CHOSEN_RUN = "{{ ti.xcom_pull(task_ids='choose')['parameters']['chosen_run'] }}"

with DAG(
    "search_model",
    description="train -> rungs of candidates -> choose the first that meets the goals",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["tfmot_ops"],
    params=PARAMS,
    render_template_as_native_obj=True,
    default_args=forms.DEFAULT_ARGS,
) as dag:

    @task
    def check(**context: Any) -> None:
        """Refuse a run without a goal, before anything is trained."""
        params = context["params"]
        check_goals({name: params[name] for name in GOALS}, params["target"])

    open_run = OpenRunOperator(
        task_id="open_run",
        options={
            "name": "search {{ params.model.split('/')[-1] }} {{ params.dataset.split('/')[-1] }}",
            "parameters": "{{ params }}",
        },
    )
    train = TrainOperator(
        task_id="train", options={**TRAINING, "epochs": "{{ params.epochs }}"}, parent_run=open_run.output
    )
    check() >> open_run

    planned: list[Any] = []
    tried: list[Any] = []

    def search() -> dict[str, Any]:
        """What a task needs to know of the search so far."""
        epochs = {name: f"{{{{ params.{name} }}}}" for name in ("fine_tune_epochs", "qat_epochs")}
        return {
            "request": {**TRAINING, "target": "{{ params.target }}", **epochs},
            "goals": {name: f"{{{{ params.{name} }}}}" for name in GOALS},
            "trained": train.output,
            "planned": list(planned),
            "tried": list(tried),
            # Candidates of an earlier rung may have failed or been skipped: the search goes on without them.
            "trigger_rule": "all_done",
        }

    for number_of_rung in range(1, RUNGS + 1):
        plan = PlanCandidatesOperator(
            task_id=f"plan_{number_of_rung}",
            budget={name: f"{{{{ params.{name} }}}}" for name in ("candidates", "minutes", "everything")},
            is_last=number_of_rung == RUNGS,
            **search(),
        )
        rung = CandidateOperator.partial(
            task_id=f"rung_{number_of_rung}",
            parent_run=open_run.output,
            map_index_template="{{ task.options['recipe']['name'] }}",
            **candidate_resources(),
        ).expand(options=plan.output)
        planned.append(plan.output)
        tried.append(rung.output)

    # By a template, as `open_run.output` would place the task right after a setup task, where Airflow allows no trigger
    # rule but all_success.
    choose = ChooseOperator(
        task_id="choose",
        options={"everything": "{{ params.everything }}"},
        parent_run="{{ ti.xcom_pull(task_ids='open_run') }}",
        **search(),
    )
    register = RegisterOperator(
        task_id="register",
        inputs={"tflite": choose.output},
        options={**forms.RELEASE, "promote": "{{ params.promote and not params.approval }}"},
        measured=choose.output,
        parent_run=CHOSEN_RUN,
    )
    approve = ApprovePromotionOperator(
        task_id="approve",
        model="{{ params.register }}",
        wanted="{{ params.approval }}",
        registered=register.output,
        measured=choose.output,
    )
    # Finds the version of `register`, and judges the rules again: the champion may have changed while a person decided.
    promote = RegisterOperator(
        task_id="promote",
        inputs={"tflite": choose.output},
        options={**forms.RELEASE, "promote": True},
        measured=choose.output,
        parent_run=CHOSEN_RUN,
    )
    close_run = CloseRunOperator(
        task_id="close_run", steps={"train": train.output, "evaluate": choose.output}, parent_run=open_run.output
    )
    approve >> promote >> close_run
    # A teardown runs whatever happened before it, and does not decide the state of the DAG run: the steps do.
    close_run.as_teardown(setups=open_run)
