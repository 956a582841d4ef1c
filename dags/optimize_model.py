"""Train, prune, fine-tune, strip, quantise and evaluate one model; triggered by hand or through the API.

With the parameter `register`, the file is then put into MLflow's model registry if the rules of `policy_file` hold.
With `promote`, the new version becomes the champion; with `approval`, only if a person says so.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param

from tfmot_ops.contract import BUILTIN_DATASETS, BUILTIN_MODELS, PRESET_RECIPES, SHIPPED_TARGETS, Device
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
)
from tfmot_ops.operators.approval import ApprovePromotionOperator
from tfmot_ops.recipes import RECIPE_NAME
from tfmot_ops.runners import RUNNERS

# The trigger form is made from these, and a value that does not fit is refused when the run is triggered.
PARAMS = {
    "model": Param(
        "resnet8",
        type="string",
        minLength=1,
        examples=[*BUILTIN_MODELS, "application:MobileNetV2"],
        description="Built in, `application:<Name>`, path or MLflow URI of a saved model, or a registered name.",
    ),
    "dataset": Param(
        "digits",
        type="string",
        minLength=1,
        examples=[*BUILTIN_DATASETS, "npz:/data/arrays.npz", "images:/data/folder", "audio:/data/words"],
        description="A built-in data set, a kind with a path (`npz:`, `images:`, `audio:`, `csv:`, `tfrecord:`), or a "
        "registered name.",
    ),
    "task": Param(
        None,
        type=["null", "string"],
        minLength=1,
        examples=["classification", "multilabel", "regression", "segmentation", "reconstruction", "own"],
        description="What the targets mean. Empty: as the data set says, or as follows from its targets.",
    ),
    "metric": Param(
        None,
        type=["null", "string"],
        minLength=1,
        description="Headline of the task `own`: `<metric>` or `<output>:<metric>`, a name of tf_keras.metrics or a "
        "registered one. Empty: the model's loss.",
    ),
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
        pattern=r"\.(yaml|yml|json)$",
        description="A recipe of your own, used instead of the preset: path of a file on the workers.",
    ),
    "training_file": Param(
        None,
        type=["null", "string"],
        pattern=r"\.(yaml|yml|json)$",
        description="A training plan (schedule, early stopping, augmentation, distillation): path of a file on the "
        "workers. Empty: as the recipe file says.",
    ),
    "target": Param(
        None,
        type=["null", "string"],
        enum=[None, *SHIPPED_TARGETS],
        description="Device that the file is for. Empty: as the recipe file says, else no certain device.",
    ),
    "epochs": Param(
        None,
        type=["null", "integer"],
        minimum=0,
        maximum=1000,
        description="Epochs of the float training. Empty: 10, or 0 for a saved model, which comes trained.",
    ),
    "fine_tune_epochs": Param(
        None,
        type=["null", "integer"],
        minimum=0,
        maximum=1000,
        description="Empty: as the recipe says, or 0 for a recipe that does not prune.",
    ),
    "qat_epochs": Param(
        None, type=["null", "integer"], minimum=0, maximum=1000, description="Empty: as the recipe says."
    ),
    "limit": Param(None, type=["null", "integer"], minimum=50, description="Maximum number of training samples."),
    "batch_size": Param(64, type="integer", minimum=1, maximum=4096),
    "seed": Param(0, type="integer", minimum=0, maximum=2**31 - 1),
    "register": Param(
        None,
        type=["null", "string"],
        pattern=r"^[^/:]+$",
        description="Name of the registered model that the file becomes a version of. Empty: it is not registered.",
    ),
    "policy_file": Param(
        None,
        type=["null", "string"],
        pattern=r"\.(yaml|yml|json)$",
        description="Rules that have to hold for the registration: path of a file on the workers.",
    ),
    "promote": Param(False, type="boolean", description="Whether the new version becomes the champion at once."),
    "approval": Param(
        False,
        type="boolean",
        description="Whether a person decides in Airflow, by the figures, if the new version becomes the champion.",
    ),
    "runner": Param(
        None,
        type=["null", "string"],
        enum=[None, *RUNNERS],
        description="Where the steps run. Empty: as the deployment says, else in a local process.",
    ),
    "device": Param("cpu", type="string", enum=[device.value for device in Device]),
}

# Rendered as native objects, so a number stays a number and an empty field stays None.
DATA = {
    "dataset": "{{ params.dataset }}",
    "task": "{{ params.task }}",
    "metric": "{{ params.metric }}",
    "batch_size": "{{ params.batch_size }}",
    "limit": "{{ params.limit }}",
}
RECIPE = {"recipe": "{{ params.recipe_file or params.recipe }}"}
TARGET = {"target": "{{ params.target }}"}
# These outputs are named differently from the inputs they become, so each is given as the fields of its artifact.
QAT_MODEL = "{{ ti.xcom_pull(task_ids='quantize')['outputs']['model'] }}"
TRAINED_MODEL = "{{ ti.xcom_pull(task_ids='train')['outputs']['model'] }}"
TRAINING = {"training": "{{ params.training_file or params.recipe_file }}"}
RELEASE = {"name": "{{ params.register }}", "policy": "{{ params.policy_file }}"}
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
    default_args={
        "retries": 1,
        "retry_delay": timedelta(seconds=5),
        "device": "{{ params.device }}",
        "seed": "{{ params.seed }}",
    },
) as dag:
    open_run = OpenRunOperator(task_id="open_run", options={"parameters": "{{ params }}"})
    train = TrainOperator(
        task_id="train",
        options={"model": "{{ params.model }}", "epochs": "{{ params.epochs }}", **TRAINING, **DATA},
        parent_run=open_run.output,
    )
    prune = PruneOperator(
        task_id="prune",
        inputs={"model": train.output},
        options={**RECIPE, **FINE_TUNE_EPOCHS, **DATA},
        parent_run=open_run.output,
    )
    fine_tune = FineTuneOperator(
        task_id="fine_tune",
        inputs={"model": prune.output, "trained": TRAINED_MODEL},
        options={**RECIPE, **FINE_TUNE_EPOCHS, **TRAINING, **DATA},
        parent_run=open_run.output,
    )
    strip = StripOperator(
        task_id="strip",
        inputs={"model": fine_tune.output},
        options={**RECIPE, **DATA},
        parent_run=open_run.output,
    )
    quantize = QuantizeOperator(
        task_id="quantize",
        inputs={"model": strip.output, "trained": TRAINED_MODEL},
        options={**RECIPE, **TARGET, "epochs": "{{ params.qat_epochs }}", **TRAINING, **DATA},
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
        options={**RECIPE, **TARGET, **DATA},
        parent_run=open_run.output,
    )
    register = RegisterOperator(
        task_id="register",
        inputs={"tflite": quantize.output},
        options={**RELEASE, "promote": "{{ params.promote and not params.approval }}"},
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
        options={**RELEASE, "promote": True},
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
