"""Train, prune, fine-tune, strip, quantise and evaluate one model; triggered by hand or through the API.

With the parameter `register`, the file is then put into MLflow's model registry if the rules of `policy_file` hold.
With `promote`, the new version becomes the champion; with `approval`, only if a person says so.
"""

from airflow.sdk import DAG, Param

from tfmot_ops.contract import PRESET_RECIPES, SHIPPED_TARGETS
from tfmot_ops.operators import (
    CloseRunOperator,
    EvaluateOperator,
    FineTuneOperator,
    OpenRunOperator,
    PruneOperator,
    QuantizeOperator,
    RegisterOperator,
    StripOperator,
    TrainOperator,
    forms,
)
from tfmot_ops.operators.approval import ApprovePromotionOperator
from tfmot_ops.recipes import RECIPE_NAME

# The trigger form is made from these, and a value that does not fit is refused when the run is triggered.
PARAMS = {
    **forms.model_and_data(),
    "recipe": Param(
        "sparse50_wi8_ai8",
        type="string",
        pattern=RECIPE_NAME,
        examples=list(PRESET_RECIPES),
        description="A preset, or any name of such parts: `sparse70_wi8_ai8`, `wi8_ai8_ptq`.",
    ),
    "recipe_file": Param(
        None,
        type=["null", "string"],
        pattern=forms.DOCUMENT,
        description="A recipe of your own, used instead of the preset: path of a file on the workers.",
    ),
    **forms.training_file("as the recipe file says"),
    "target": Param(
        None,
        type=["null", "string"],
        enum=[None, *SHIPPED_TARGETS],
        description="Device that the file is for. Empty: as the recipe file says, else no certain device.",
    ),
    **forms.training(),
    **forms.release(),
    **forms.place(),
}

# Rendered as native objects, so a number stays a number and an empty field stays None.
RECIPE = {"recipe": "{{ params.recipe_file or params.recipe }}"}
TARGET = {"target": "{{ params.target }}"}
# These outputs are named differently from the inputs they become, so each is given as the fields of its artifact.
QAT_MODEL = "{{ ti.xcom_pull(task_ids='quantize')['outputs']['model'] }}"
TRAINED_MODEL = "{{ ti.xcom_pull(task_ids='train')['outputs']['model'] }}"
TRAINING = {"training": "{{ params.training_file or params.recipe_file }}"}
FINE_TUNE_EPOCHS = {"epochs": "{{ params.fine_tune_epochs }}"}

with DAG(
    "optimize_model",
    description="train -> prune -> fine-tune -> strip -> quantize -> evaluate",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["tfmot_ops"],
    params=PARAMS,
    render_template_as_native_obj=True,
    default_args=forms.DEFAULT_ARGS,
) as dag:
    open_run = OpenRunOperator(task_id="open_run", options={"parameters": "{{ params }}"})
    train = TrainOperator(
        task_id="train",
        options={"model": "{{ params.model }}", "epochs": "{{ params.epochs }}", **TRAINING, **forms.DATA},
        parent_run=open_run.output,
    )
    prune = PruneOperator(
        task_id="prune",
        inputs={"model": train.output},
        options={**RECIPE, **FINE_TUNE_EPOCHS, **forms.DATA},
        parent_run=open_run.output,
    )
    fine_tune = FineTuneOperator(
        task_id="fine_tune",
        inputs={"model": prune.output, "trained": TRAINED_MODEL},
        options={**RECIPE, **FINE_TUNE_EPOCHS, **TRAINING, **forms.DATA},
        parent_run=open_run.output,
    )
    strip = StripOperator(
        task_id="strip",
        inputs={"model": fine_tune.output},
        options={**RECIPE, **forms.DATA},
        parent_run=open_run.output,
    )
    quantize = QuantizeOperator(
        task_id="quantize",
        inputs={"model": strip.output, "trained": TRAINED_MODEL},
        options={**RECIPE, **TARGET, "epochs": "{{ params.qat_epochs }}", **TRAINING, **forms.DATA},
        parent_run=open_run.output,
    )
    evaluate = EvaluateOperator(
        task_id="evaluate",
        inputs={
            "tflite": quantize.output,
            "model": strip.output,
            "quantized": QAT_MODEL,
            "trained": TRAINED_MODEL,
        },
        options={**RECIPE, **TARGET, **forms.DATA},
        parent_run=open_run.output,
    )
    register = RegisterOperator(
        task_id="register",
        inputs={"tflite": quantize.output},
        options={**forms.RELEASE, "promote": "{{ params.promote and not params.approval }}"},
        measured=evaluate.output,
        parent_run=open_run.output,
    )
    approve = ApprovePromotionOperator(
        task_id="approve",
        model="{{ params.register }}",
        wanted="{{ params.approval }}",
        registered=register.output,
        measured=evaluate.output,
    )
    # Finds the version of `register`, and judges the rules again: the champion may have changed while a person decided.
    promote = RegisterOperator(
        task_id="promote",
        inputs={"tflite": quantize.output},
        options={**forms.RELEASE, "promote": True},
        measured=evaluate.output,
        parent_run=open_run.output,
    )
    close_run = CloseRunOperator(
        task_id="close_run",
        steps={step.task_id: step.output for step in (train, prune, fine_tune, strip, quantize, evaluate)},
        parent_run=open_run.output,
    )
    approve >> promote >> close_run
    # A teardown runs whatever happened before it, and does not decide the state of the DAG run: the steps do.
    close_run.as_teardown(setups=open_run)
