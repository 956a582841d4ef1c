"""Fields of trigger forms that several DAGs have: model and data, training, release, and where the steps run.

Each function makes new `Param` objects, as Airflow keeps the values of a DAG run in them. The constants are the
templates that hand the fields to the tasks.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param

from tfmot_ops.contract import BUILTIN_DATASETS, BUILTIN_MODELS, Device
from tfmot_ops.runners import RUNNERS

#: Pattern of the path of a YAML or JSON file.
DOCUMENT = r"\.(yaml|yml|json)$"
#: Options of every step that reads the data set.
DATA = {name: f"{{{{ params.{name} }}}}" for name in ("dataset", "task", "metric", "batch_size", "limit")}
#: Options of the tasks that register the file.
RELEASE = {"name": "{{ params.register }}", "policy": "{{ params.policy_file }}"}
#: Arguments of every task.
DEFAULT_ARGS = {
    "retries": 1,
    "retry_delay": timedelta(seconds=5),
    "device": "{{ params.device }}",
    "seed": "{{ params.seed }}",
}
_MOST_EPOCHS = 1000


def model_and_data() -> dict[str, Param]:
    """`model`, `dataset`, `task` and `metric`."""
    return {
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
            description="A built-in data set, a kind with a path (`npz:`, `images:`, `audio:`, `csv:`, `tfrecord:`), "
            "or a registered name.",
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
            description="Headline of the task `own`: `<metric>` or `<output>:<metric>`, a name of tf_keras.metrics or "
            "a registered one. Empty: the model's loss.",
        ),
    }


def training_file(otherwise: str) -> dict[str, Param]:
    """`training_file`.

    Args:
        otherwise: what an empty field means: `as the recipe file says`.
    """
    return {
        "training_file": Param(
            None,
            type=["null", "string"],
            pattern=DOCUMENT,
            description="A training plan (schedule, early stopping, augmentation, distillation): path of a file on the "
            f"workers. Empty: {otherwise}.",
        )
    }


def training() -> dict[str, Param]:
    """The epochs of each step that trains, `limit`, `batch_size` and `seed`."""
    return {
        "epochs": Param(
            None,
            type=["null", "integer"],
            minimum=0,
            maximum=_MOST_EPOCHS,
            description="Epochs of the float training. Empty: 10, or 0 for a saved model, which comes trained.",
        ),
        "fine_tune_epochs": Param(
            None,
            type=["null", "integer"],
            minimum=0,
            maximum=_MOST_EPOCHS,
            description="Empty: as the recipe says, or 0 for a recipe that does not prune.",
        ),
        "qat_epochs": Param(
            None, type=["null", "integer"], minimum=0, maximum=_MOST_EPOCHS, description="Empty: as the recipe says."
        ),
        "limit": Param(None, type=["null", "integer"], minimum=50, description="Maximum number of training samples."),
        "batch_size": Param(64, type="integer", minimum=1, maximum=4096),
        "seed": Param(0, type="integer", minimum=0, maximum=2**31 - 1),
    }


def release() -> dict[str, Param]:
    """`register`, `policy_file`, `promote` and `approval`."""
    return {
        "register": Param(
            None,
            type=["null", "string"],
            pattern=r"^[^/:]+$",
            description="Name of the registered model that the file becomes a version of. Empty: it is not registered.",
        ),
        "policy_file": Param(
            None,
            type=["null", "string"],
            pattern=DOCUMENT,
            description="Rules that have to hold for the registration: path of a file on the workers.",
        ),
        "promote": Param(False, type="boolean", description="Whether the new version becomes the champion at once."),
        "approval": Param(
            False,
            type="boolean",
            description="Whether a person decides in Airflow, by the figures, if the new version becomes the champion.",
        ),
    }


def place() -> dict[str, Param]:
    """`runner` and `device`."""
    return {
        "runner": Param(
            None,
            type=["null", "string"],
            enum=[None, *RUNNERS],
            description="Where the steps run. Empty: as the deployment says, else in a local process.",
        ),
        "device": Param("cpu", type="string", enum=[device.value for device in Device]),
    }
