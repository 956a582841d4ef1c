"""What the runners docker and kubernetes share: image, command, environment variables and result file of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tfmot_ops import __version__
from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.errors import SpecError
from tfmot_ops.system.environment import REQUIRE_GPU, SPEC
from tfmot_ops.system.uri_secrets import has_secret, hide

#: Images built from `docker/Dockerfile`, with the names in its documentation.
IMAGE: Final = f"tfmot-ops:{__version__}-cpu"
GPU_IMAGE: Final = f"tfmot-ops:{__version__}-gpu"
#: User and group id in the image; this user can write to the scratch space only.
UID: Final = 10001
#: The spec is passed in an environment variable: a file needs a mount, and every user can read a command line.
SPEC_VARIABLE: Final = SPEC.name
#: Path of the result file, given by the XCom sidecar of Airflow's Kubernetes provider; the Docker runner uses it too.
RESULT_FOLDER: Final = "/airflow/xcom"
RESULT_FILE: Final = f"{RESULT_FOLDER}/return.json"
ARGUMENTS: Final = ("run", "--spec", f"env:{SPEC_VARIABLE}", "--result", RESULT_FILE)
#: Seconds between SIGTERM and SIGKILL. Airflow gives a task 5 s after SIGTERM before it kills the task's own process.
GRACE_S: Final = 3
#: Default deadline of a step in seconds: one day, in case the Airflow task is gone and cannot end the step.
DEADLINE_S: Final = 86400
#: Variables for a GPU: TensorFlow allocates GPU memory on demand instead of all of it, and a step fails without a GPU.
GPU_ENVIRONMENT: Final = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", REQUIRE_GPU.name: "1"}


def environment(spec: StepSpec, device: Device, more: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of a step's container; the runner's override the defaults, but not the spec's variable.

    Raises:
        SpecError: a URI of the spec contains a secret, which everybody who may inspect the container could read.
    """
    for name, uri in spec.uris().items():
        _refuse_secret(name, uri)
    gpu = GPU_ENVIRONMENT if device is Device.GPU else {}
    return {**gpu, **more, SPEC_VARIABLE: spec.model_dump_json()}


def _refuse_secret(name: str, uri: str) -> None:
    if has_secret(uri):
        raise SpecError(
            f"{name} contains a secret, and everybody who may inspect the container can read the spec",
            required="a URI without user, password or key",
            received=hide(uri),
            remedy="pass MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the variables that the artifact "
            "store reads, through the runner's env_from (kubernetes) or env_conn_id (docker)",
        )


def task_key(context: Mapping[str, Any] | None) -> str | None:
    """A key of the task instance, the same for all its attempts; None outside Airflow."""
    if not context or "ti" not in context:
        return None
    ti = context["ti"]
    return "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index)))


def missing_provider(name: str) -> SpecError:
    """The error for a missing Airflow provider in the environment of the task."""
    return SpecError(
        f"runner {name} needs Airflow's {name} provider",
        required=f"pip install 'tfmot-ops[{name}]'",
        received="the provider cannot be imported",
        remedy="install it in Airflow's environment; the official image has it",
    )
