"""What a step's container is, wherever it runs: which image, which command, how it is asked and how it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tfmot_ops import __version__
from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.errors import SpecError
from tfmot_ops.system.environment import REQUIRE_GPU, SPEC
from tfmot_ops.system.uri_secrets import has_secret, hide

#: Images that `docker/Dockerfile` makes, under the names its documentation builds them with.
IMAGE: Final = f"tfmot-ops:{__version__}-cpu"
GPU_IMAGE: Final = f"tfmot-ops:{__version__}-gpu"
#: User and group of the image, which owns nothing but its scratch space.
UID: Final = 10001
#: The spec travels in a variable: no file has to be put anywhere first, and a command line is for everybody to read.
SPEC_VARIABLE: Final = SPEC.name
#: Where Airflow's sidecar for Kubernetes looks; Docker's runner takes the same place.
RESULT_FOLDER: Final = "/airflow/xcom"
RESULT_FILE: Final = f"{RESULT_FOLDER}/return.json"
ARGUMENTS: Final = ("run", "--spec", f"env:{SPEC_VARIABLE}", "--result", RESULT_FILE)
#: Seconds between SIGTERM and SIGKILL. Airflow gives a task 5 s after SIGTERM before it kills the task's own process.
GRACE_S: Final = 3
#: A day: what nobody comes back for ends.
DEADLINE_S: Final = 86400
#: Otherwise TensorFlow takes all memory of a GPU that others may use too, or trains for days on a CPU.
GPU_ENVIRONMENT: Final = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", REQUIRE_GPU.name: "1"}


def environment(spec: StepSpec, device: Device, more: Mapping[str, str]) -> dict[str, str]:
    """Variables of a step's container; those of the runner win over ours, and none over the spec.

    Raises:
        SpecError: a URI of the spec carries a secret, which would be for everybody to read.
    """
    for name, uri in spec.uris().items():
        _refuse_secret(name, uri)
    gpu = GPU_ENVIRONMENT if device is Device.GPU else {}
    return {**gpu, **more, SPEC_VARIABLE: spec.model_dump_json()}


def _refuse_secret(name: str, uri: str) -> None:
    if has_secret(uri):
        raise SpecError(
            f"{name} carries a secret, and a spec is for everybody to read",
            required="a URI without user, password or key",
            received=hide(uri),
            remedy="give the step MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or what its store reads: "
            "env_from, or env_conn_id",
        )


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
