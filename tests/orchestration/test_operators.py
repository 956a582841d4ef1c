"""The operators under Airflow's own `dag.test()`; only the place where steps run is a fake."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG, XComArg
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from tfmot_ops.contract import StepResult, StepSpec
from tfmot_ops.errors import RecipeError, SpecError
from tfmot_ops.operators import (
    ChooseOperator,
    CloseRunOperator,
    EvaluateOperator,
    FineTuneOperator,
    OpenRunOperator,
    PlanCandidatesOperator,
    QuantizeOperator,
    RegisterOperator,
    StepOperator,
    TrainOperator,
)
from tfmot_ops.operators.search import check_goals
from tfmot_ops.runners import FakeRunner

pytestmark = pytest.mark.airflow


def specs(run, step_id=None):
    return [spec for spec in run["specs"] if step_id in (None, spec["step_id"])]


@pytest.mark.slow
def test_a_green_chain(fake_runs):
    run = fake_runs["green"]
    assert run["state"] == "success"
    steps = [spec["step_id"] for spec in run["specs"]]
    assert steps[:4] == ["open_run", "train", "quantize", "evaluate"]
    assert sorted(steps[4:]) == ["close_run", "register"]


@pytest.mark.slow
def test_a_registration_is_given_what_was_measured(fake_runs):
    (spec,) = specs(fake_runs["green"], "register")
    assert spec["options"]["metrics"] == {"accuracy": 0.5}
    assert spec["options"]["gates"] == {"accuracy": 0.4}
    assert spec["inputs"]["tflite"]["uri"] == "memory://quantize/tflite"


def test_templates_keep_numbers_and_none(fake_runs):
    (spec,) = specs(fake_runs["green"], "train")
    assert spec["options"]["epochs"] == 3
    assert spec["options"]["limit"] is None
    assert spec["seed"] == 7
    assert spec["options"]["kind"] == "train"


def test_inputs_are_the_outputs_of_the_same_name(fake_runs):
    (spec,) = specs(fake_runs["green"], "evaluate")
    assert spec["inputs"]["tflite"]["uri"] == "memory://quantize/tflite"
    assert spec["inputs"]["model"]["uri"] == "memory://train/model"


def test_each_step_has_its_key_and_the_parent_run(fake_runs):
    run = fake_runs["green"]
    opened = run["xcoms"]["open_run[-1].return_value"]["tracking_run_id"]
    parents = {spec["step_id"]: spec["tracking"]["parent_run_id"] for spec in run["specs"]}
    assert parents == {"open_run": None} | dict.fromkeys(
        ("train", "quantize", "evaluate", "register", "close_run"), opened
    )
    keys = [spec["tracking"]["key"] for spec in run["specs"]]
    assert keys[1] == {"dag_id": "green", "run_id": run["run_id"], "task_id": "train", "map_index": "-1"}
    assert len({tuple(key.items()) for key in keys}) == len(keys)


def test_the_xcom_is_the_result_without_its_tables(fake_runs):
    xcom = fake_runs["green"]["xcoms"]["quantize[-1].return_value"]
    assert "layers" not in xcom
    assert "versions" not in xcom
    assert set(StepResult.model_validate(xcom).outputs) == {"model", "tflite"}


def test_close_run_gets_the_figures(fake_runs):
    (spec,) = specs(fake_runs["green"], "close_run")
    assert set(spec["options"]["steps"]) == {"train", "quantize", "evaluate"}
    assert spec["options"]["failed"] == []


def test_a_failed_step_is_retried_under_the_same_key(fake_runs):
    run = fake_runs["flaky"]
    assert run["state"] == "success"
    first, second = specs(run, "train")
    assert first == second
    assert run["tasks"]["train[-1]"] == ["success", 2]


def test_after_a_failure_the_run_is_closed_and_stays_red(fake_runs):
    run = fake_runs["broken"]
    assert run["state"] == "failed"
    assert run["tasks"]["quantize[-1]"] == ["failed", 2]
    assert run["tasks"]["close_run[-1]"] == ["success", 1]
    (spec,) = specs(run, "close_run")
    assert spec["options"]["failed"] == ["quantize", "evaluate"]
    assert list(spec["options"]["steps"]) == ["train"]


@pytest.mark.parametrize(
    ("dag", "task"), [pytest.param("unsupported", "train", id="3"), pytest.param("wrong_spec", "quantize", id="2")]
)
def test_exit_codes_2_and_3_are_not_retried(fake_runs, dag, task):
    assert fake_runs[dag]["tasks"][f"{task}[-1]"] == ["failed", 1]


def test_a_wrong_spec_is_never_started(fake_runs):
    assert specs(fake_runs["wrong_spec"], "quantize") == []


def test_a_recipe_file_travels_in_the_spec(fake_runs):
    (spec,) = specs(fake_runs["recipe_file"], "quantize")
    assert spec["options"]["recipe"]["name"] == "mine"
    assert spec["options"]["recipe"]["sparsity"]["ratio"] == 0.6


def test_mapped_tasks_have_their_own_key_and_link(fake_runs):
    run = fake_runs["mapped"]
    assert sorted(spec["tracking"]["key"]["map_index"] for spec in specs(run, "train")) == ["0", "1"]
    assert run["labels"] == {"train[0]": "resnet8", "train[1]": "mobilenet_like", "close_run[-1]": None}
    for index in (0, 1):
        run_id = run["xcoms"][f"train[{index}].return_value"]["tracking_run_id"]
        assert run["xcoms"][f"train[{index}].tfmot_ops_mlflow_run"] == f"http://127.0.0.1:5000/#/runs/{run_id}"


def test_close_run_is_given_the_figures_of_each_mapped_task(fake_runs):
    (spec,) = specs(fake_runs["mapped"], "close_run")
    assert sorted(spec["options"]["steps"]) == ["train[0]", "train[1]"]
    assert spec["options"]["failed"] == []


def test_wrong_params_are_refused_before_anything_runs(fake_runs):
    # Airflow 3.2 raises ValueError, 3.3 ParamValidationError.
    assert "Invalid input for param epochs: -1 is less than the minimum of 0" in fake_runs["refused"]["refused"]
    assert fake_runs["refused"]["specs"] == []


def test_a_run_is_named_by_the_recipe_in_a_file(tmp_path):
    file = tmp_path / "any.yaml"
    file.write_text("name: mine\n")
    parameters = {"model": "resnet8", "recipe": "wi8_ai8", "recipe_file": str(file)}
    opened = OpenRunOperator(task_id="open_run", options={"parameters": parameters})
    assert opened._options({})["parameters"]["recipe"]["name"] == "mine"
    parameters["recipe_file"] = None
    opened = OpenRunOperator(task_id="open_run", options={"parameters": parameters})
    assert opened._options({})["parameters"]["recipe"] == "wi8_ai8"


def test_a_training_plan_in_a_file_travels_in_the_options(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("early_stopping: {patience: 2}\n")
    options = {"model": "resnet8", "dataset": "digits", "training": str(file)}
    train = TrainOperator(task_id="train", options=options)
    train._refuse_literals()
    assert train._options({})["training"].early_stopping.patience == 2
    file.write_text("name: mine\n")  # a recipe without a plan
    assert train._options({})["training"] is None


def test_close_run_takes_the_headline_of_the_last_step_that_has_one():
    rmse = {"name": "rmse", "higher_is_better": False, "is_share": False}
    steps = {"train": {"metrics": {}, "headline": rmse}, "list": {"metrics": {}}, "evaluate": None}
    closed = CloseRunOperator(task_id="close_run", steps=steps)
    assert closed._options({}) == {
        "kind": "close_run",
        "steps": {"train": {}, "list": {}},
        "failed": ["evaluate"],
        "headline": rmse,
    }
    assert CloseRunOperator(task_id="close_run", steps={"list": {"metrics": {}}})._options({})["headline"] is None


def test_close_run_names_each_result_of_a_mapped_task():
    results = [{"metrics": {"accuracy": 0.5}}, None, {"metrics": {"accuracy": 0.7}}]
    options = CloseRunOperator(task_id="close_run", steps={"train": results, "none": []})._options({})
    assert options["steps"] == {"train[0]": {"accuracy": 0.5}, "train[2]": {"accuracy": 0.7}}
    assert options["failed"] == ["train[1]", "none"]


def rendered(operator, field, value, **more):
    """What a template of the operator may have rendered to, in place of what the operator was written with."""
    task = operator(task_id="one", tracking_uri="sqlite:///a.db", **more)
    setattr(task, field, value)
    return task


TRAIN = {"options": {"model": "resnet8", "dataset": "digits"}}
RENDERED = {
    "experiment": (TrainOperator, 2024, TRAIN),
    "tracking_uri": (TrainOperator, 5, TRAIN),
    "output_uri": (TrainOperator, ["a"], TRAIN),
    "seed": (TrainOperator, "2.5", TRAIN),
    "device": (TrainOperator, 1, TRAIN),
    "options": (TrainOperator, "{", TRAIN),
    "options of a list": (TrainOperator, [1], TRAIN),
    "inputs": (OpenRunOperator, "{", {}),
    "inputs of a number": (OpenRunOperator, 3, {}),
    "steps": (CloseRunOperator, "{", {}),
    "steps of a number": (CloseRunOperator, 3, {}),
    "steps with metrics that are none": (CloseRunOperator, {"train": {"metrics": 3}}, {}),
    "measured": (RegisterOperator, "{", {"inputs": {"tflite": {}}, "options": {"name": "a"}}),
}


@pytest.mark.parametrize("name", RENDERED)
def test_what_a_template_rendered_to_is_refused_and_not_retried(name):
    operator, value, more = RENDERED[name]
    task = rendered(operator, name.partition(" ")[0], value, runner=FakeRunner(), **more)
    names = {"dag_id": "d", "run_id": "r", "task_id": "one", "map_index": -1}
    with pytest.raises(AirflowFailException, match="task one"):
        task.execute({"ti": SimpleNamespace(**names), "params": {}})


MODEL = {"model": "{{ ti.xcom_pull(task_ids='train') }}"}
DATA = {"dataset": "digits"}
WRONG = {
    "an unknown option": (TrainOperator, {"options": {"model": "resnet8", "epoch": 3, **DATA}}, "options.epoch"),
    "a value out of range": (TrainOperator, {"options": {"model": "resnet8", "epochs": -1, **DATA}}, "options.epochs"),
    "a text for a number": (TrainOperator, {"options": {"model": "m", "epochs": "many", **DATA}}, "options.epochs"),
    "a missing option": (TrainOperator, {"options": {"model": "resnet8"}}, "options.dataset"),
    "a wrong recipe": (
        FineTuneOperator,
        {"inputs": MODEL, "options": {"recipe": {"name": "mine", "sparsity": {"ratio": 2}}, **DATA}},
        "options.recipe.sparsity.ratio",
    ),
    "a missing input": (QuantizeOperator, {"options": {"recipe": "wi8_ai8", **DATA}}, "inputs: quantize needs"),
    "another input": (
        EvaluateOperator,
        {"inputs": MODEL, "options": DATA},
        "inputs: evaluate needs .*\n  required: tflite\n  received: model",
    ),
    "an unknown kind": (StepOperator, {"options": {"kind": "smooth"}}, "options"),
}


@pytest.mark.parametrize("name", WRONG)
def test_literal_arguments_that_are_wrong_are_refused_when_the_dag_is_parsed(name):
    operator, arguments, place = WRONG[name]
    with pytest.raises(SpecError, match=f"task one: .*{place}"):
        operator(task_id="one", **arguments)


def test_a_recipe_that_does_not_exist_is_refused_when_the_dag_is_parsed():
    with pytest.raises(RecipeError, match="'wi9_ai8' cannot be decoded"):
        QuantizeOperator(task_id="one", inputs=MODEL, options={"recipe": "wi9_ai8", **DATA})


@pytest.mark.parametrize(
    "options",
    [
        {"model": "{{ params.model }}", "epochs": "{{ params.epochs }}", "dataset": "{% if 1 %}digits{% endif %}"},
        {"model": "resnet8", "epochs": "3", "limit": "None", **DATA},
        {"model": XComArg, **DATA},
    ],
    ids=["templates", "texts that native rendering changes", "another task's result"],
)
def test_what_is_known_only_when_the_task_runs_is_left_to_it(options):
    with DAG("one_more", schedule=None):
        if options["model"] is XComArg:
            options = options | {"model": OpenRunOperator(task_id="other").output}
        TrainOperator(task_id="one", options=options)


def test_a_wrong_option_beside_a_template_is_refused_without_blaming_the_template():
    with pytest.raises(SpecError, match=r"field options\.batch\n") as caught:
        TrainOperator(task_id="one", options={"model": "{{ params.model }}", "batch": 3, **DATA})
    assert "options.model" not in str(caught.value)


def test_a_recipe_file_is_read_by_the_worker_that_has_it():
    QuantizeOperator(task_id="one", inputs=MODEL, options={"recipe": "/not/here/mine.yaml", **DATA})


class Adding(TrainOperator):
    """A user's operator that gives an option itself."""

    def _options(self, context):
        return super()._options(context) | DATA


def test_a_subclass_that_adds_options_is_not_asked_for_them():
    Adding(task_id="one", options={"model": "resnet8"})


def test_a_search_without_a_goal_or_with_a_wrong_one_is_refused_before_it_trains():
    with pytest.raises(AirflowFailException, match="the search has no goal"):
        check_goals(dict.fromkeys(("max_drop", "max_flash")), "litert_cpu")
    with pytest.raises(AirflowFailException, match="max_flash"):
        check_goals({"max_flash": "much"}, "litert_cpu")
    with pytest.raises(AirflowFailException, match="cortex_m"):
        check_goals({"max_drop": 1}, "toaster")


def test_nothing_is_chosen_or_tried_without_a_float_model():
    with pytest.raises(AirflowFailException, match="there is no float model"):
        ChooseOperator(task_id="choose").execute({})
    with pytest.raises(AirflowSkipException, match="there is no float model"):
        PlanCandidatesOperator(task_id="plan").execute({})


def planned(minutes_ago=1, **given):
    request = {"model": "mlp", "dataset": "digits", "target": "cortex_m", "training": None, "qat_epochs": 3}
    budget = {"candidates": 9, "minutes": 5.0}
    plan = PlanCandidatesOperator(
        task_id="plan", request=request | {"fine_tune_epochs": 2}, trained={"metrics": {}}, budget=budget, **given
    )
    started = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    return plan.execute({"dag_run": SimpleNamespace(start_date=started)})


def test_a_rung_after_another_takes_over_pruned_models_and_a_failed_candidate_is_left_out():
    first = planned(goals={"max_drop": 1.0})
    assert [options["recipe"]["name"] for options in first] == ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq"]
    assert all("fine_tune_epochs" not in options and options["qat_epochs"] == 3 for options in first)
    made = {"spec_sha256": "0" * 64, "step_id": "strip", "kind": "strip", "status": "ok"}
    result = {
        "metrics": {"accuracy": 0.8, "accuracy_drop": 0.1},
        "headline": {"name": "accuracy"},
        "duration_s": 1.0,
        "tracking_run_id": "r",
        "outputs": {"tflite": {"uri": "runs:/r/t", "sha256": "0" * 64, "size_bytes": 1, "format": "tflite"}},
        "parameters": {"candidate": "wi8_ai8_ptq", "shared": {"digest": made}},
    }
    # The second candidate has no result: its task failed.
    second = planned(goals={"max_drop": 1.0}, planned=[first], tried=[[result]])
    assert [options["recipe"]["name"] for options in second] == ["wi8_ai8", "wi8_ai8_distilled"]
    assert all(options["shared"] == {"digest": made} for options in second)
    StepSpec.model_validate({
        "step_id": "rung_2",
        "output_uri": "memory://x",
        "options": {"kind": "candidate", **second[0], "trained": made | {"step_id": "train", "kind": "train"}},
    })  # fmt: skip


def test_no_candidate_is_started_after_the_minutes_of_the_budget():
    assert planned(minutes_ago=4, goals={"max_drop": 1.0})
    assert planned(minutes_ago=6, goals={"max_drop": 1.0}) == []
