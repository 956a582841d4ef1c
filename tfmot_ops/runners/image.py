"""What a step's container is, wherever it runs: which image, which command, how it is asked and how it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from tfmot_ops import __version__
from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.errors import SpecError

#: Images that `docker/Dockerfile` makes, under the names its documentation builds them with.
IMAGE: Final = f"tfmot-ops:{__version__}-cpu"
GPU_IMAGE: Final = f"tfmot-ops:{__version__}-gpu"
#: User and group of the image, which owns nothing but its scratch space.
UID: Final = 10001
#: The spec travels in a variable: no file has to be put anywhere first, and a command line is for everybody to read.
SPEC_VARIABLE: Final = "TFMOT_OPS_SPEC"
#: Where Airflow's sidecar for Kubernetes looks; Docker's runner takes the same place.
RESULT_FOLDER: Final = "/airflow/xcom"
RESULT_FILE: Final = f"{RESULT_FOLDER}/return.json"
ARGUMENTS: Final = ("run", "--spec", f"env:{SPEC_VARIABLE}", "--result", RESULT_FILE)
#: Seconds between SIGTERM and SIGKILL. Airflow gives a task 5 s after SIGTERM before it kills the task's own process.
GRACE_S: Final = 3
#: A day: what nobody comes back for ends.
DEADLINE_S: Final = 86400
#: Otherwise TensorFlow takes all memory of a GPU that others may use too.
GPU_ENVIRONMENT: Final = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def environment(spec: StepSpec, device: Device, more: Mapping[str, str]) -> dict[str, str]:
    """Variables of a step's container; those of the runner win over ours, and none over the spec.

    Raises:
        SpecError: the tracking URI carries a password, which would be for everybody to read.
    """
    if spec.tracking is not None and urlsplit(spec.tracking.uri).password is not None:
        raise SpecError(
            "tracking_uri carries a password, and a spec is no secret",
            required="a tracking URI without one",
            received=f"a {urlsplit(spec.tracking.uri).scheme} URI of user {urlsplit(spec.tracking.uri).username}",
            remedy="give the step MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: env_from, or env_conn_id",
        )
    gpu = GPU_ENVIRONMENT if device is Device.GPU else {}
    return {**gpu, **more, SPEC_VARIABLE: spec.model_dump_json()}


def task_key(context: Mapping[str, Any] | None) -> str | None:
    """What tells a task instance from all others, and is the same for each of its attempts; None outside Airflow."""
    if not context or "ti" not in context:
        return None
    ti = context["ti"]
    return "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index)))


def missing_provider(name: str) -> SpecError:
    """The error for an extra that is not installed where the task runs."""
    return SpecError(
        f"runner {name} needs Airflow's provider for it",
        required=f"pip install 'tfmot-ops[{name}]'",
        received="the provider cannot be imported",
        remedy="install it in Airflow's environment; the official image has it",
    )
