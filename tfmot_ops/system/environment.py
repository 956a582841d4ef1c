"""Every environment variable that this package reads, and the functions that read them.

A variable that is empty counts as one that is not set. Switches that this package sets for TensorFlow, Keras and
MLflow, and never reads, stand where it sets them. Where Airflow's tasks run, a variable with an `option` that is not
set is read from Airflow's configuration instead (`read_options_from`).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Section of Airflow's configuration with the options of variables.
SECTION: Final = "tfmot_ops"
#: Reads an option of Airflow's configuration; no function outside of Airflow.
_sources: list[Callable[[str], str | None]] = []


def read_options_from(source: Callable[[str], str | None]) -> None:
    """Have variables that are not set read from a configuration.

    Args:
        source: option -> its value, None or empty where it is not set. It replaces the source of an earlier call.
    """
    _sources[:] = [source]


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes:
        name: name of the variable.
        does: effect of the variable, in one sentence.
        default: behaviour if the variable is not set.
        internal: this package sets the variable for its own processes and containers; nobody else sets it.
        option: option of Airflow's configuration, section `tfmot_ops`, that is read where the variable is not set; None
            for a variable without one.
        is_secret: whether the value may hold a secret.
    """

    name: str
    does: str
    default: str
    internal: bool = False
    option: str | None = None
    is_secret: bool = False

    def get(self) -> str | None:
        """The value, also of the option; None where both are empty or not set."""
        value = os.environ.get(self.name)
        if not value and self.option is not None:
            value = next(filter(None, (source(self.option) for source in _sources)), None)
        return value or None


RUNNER: Final = Variable(
    "TFMOT_OPS_RUNNER",
    "Names the deployment's runner: local, docker or kubernetes.",
    "local",
    option="runner",
)
RUNNER_OPTIONS: Final = Variable(
    "TFMOT_OPS_RUNNER_OPTIONS",
    "Gives the arguments of the deployment's runner, as a JSON object.",
    "the runner's own defaults",
    option="runner_options",
    is_secret=True,
)
ALLOWED_RUNNERS: Final = Variable(
    "TFMOT_OPS_ALLOWED_RUNNERS",
    "Names the runners that a DAG run may choose besides the deployment's, with commas between them.",
    "the deployment's runner alone; any runner where TFMOT_OPS_RUNNER is not set either",
    option="allowed_runners",
)
ALLOWED_PATHS: Final = Variable(
    "TFMOT_OPS_ALLOWED_PATHS",
    "Names the folders and URI prefixes that a DAG run's parameters may name for models, data sets, recipes, training "
    "plans and outputs, with commas between them.",
    "/data, object stores and MLflow",
    option="allowed_paths",
)
FORECAST_PYTHONS: Final = Variable(
    "TFMOT_OPS_FORECAST_PYTHONS",
    "Maps each name that the parameter `next_python` of the DAG compat_forecast may have to an interpreter, as a JSON "
    "object.",
    "no name",
)
FORECAST_IMAGES: Final = Variable(
    "TFMOT_OPS_FORECAST_IMAGES",
    "Maps each name that the parameter `next_image` of the DAG compat_forecast may have to an image, as a JSON object.",
    "no name",
)
MLFLOW_CONN_ID: Final = Variable(
    "TFMOT_OPS_MLFLOW_CONN_ID",
    "Names the Airflow connection with the address, login, password or token of MLflow.",
    "TFMOT_OPS_TRACKING_URI says where MLflow is",
    option="mlflow_conn_id",
)
TRACKING_URI: Final = Variable(
    "TFMOT_OPS_TRACKING_URI",
    "Says where MLflow is.",
    "MLFLOW_TRACKING_URI",
    option="tracking_uri",
    is_secret=True,
)
MLFLOW_TRACKING_URI: Final = Variable(
    "MLFLOW_TRACKING_URI",
    "Says where MLflow is, where TFMOT_OPS_TRACKING_URI does not; MLflow's own variable.",
    "nothing is recorded",
)
MLFLOW_UI: Final = Variable(
    "TFMOT_OPS_MLFLOW_UI",
    "Gives the address of MLflow in a browser, for links to runs.",
    "the tracking URI, where that is http or https",
    option="mlflow_ui",
)
TRACKING_WAIT: Final = Variable(
    "TFMOT_OPS_TRACKING_WAIT",
    "Limits the seconds that a step waits for an MLflow server that does not answer.",
    "120",
)
SWEEP_WEBHOOK: Final = Variable(
    "TFMOT_OPS_SWEEP_WEBHOOK",
    "Gives the address that the DAG compat_sweep posts regressions to, as JSON.",
    "regressions are reported in the task's log only",
    option="sweep_webhook",
    is_secret=True,
)
CHECKPOINTS: Final = Variable(
    "TFMOT_OPS_CHECKPOINTS",
    "Names the folder, as a path or any fsspec URI, for the checkpoints of steps without an output_uri.",
    "the folder tfmot_ops/checkpoints in the user's cache",
)
FASHION_MNIST: Final = Variable(
    "TFMOT_OPS_FASHION_MNIST",
    "Names the folder with the four files of the data set fashion_mnist.",
    "the files of Debian's package dataset-fashion-mnist, else a download",
)
SPEC: Final = Variable(
    "TFMOT_OPS_SPEC",
    "Holds the StepSpec of a container's step, as JSON.",
    "set by the runners docker and kubernetes",
    internal=True,
)
REQUIRE_GPU: Final = Variable(
    "TFMOT_OPS_REQUIRE_GPU",
    "Makes a step fail if TensorFlow sees no GPU, instead of training for days on a CPU.",
    "set by a runner for a step whose device is gpu",
    internal=True,
)
TETHERED: Final = Variable(
    "_TFMOT_OPS_TETHERED",
    "Says that stdin is a pipe whose other end closes when the process that started this one ends.",
    "set by a sweep for the processes of its cells",
    internal=True,
)
CACHE_HOME: Final = Variable(
    "XDG_CACHE_HOME",
    "Names the folder for the user's caches; a variable of the XDG base directories.",
    "~/.cache",
)
VISIBLE_GPUS: Final = Variable(
    "CUDA_VISIBLE_DEVICES",
    "Names the GPUs that a process may see, none by an empty value or -1; CUDA's own variable.",
    "every GPU",
)
TEMPORARY_FOLDER: Final = Variable(
    "TMPDIR",
    "Names the folder for temporary files; Python's own variable.",
    "/tmp",  # noqa: S108 - what Python takes
)

#: Variables that name MLflow, the first that is set wins.
TRACKING_VARIABLES: Final = (TRACKING_URI, MLFLOW_TRACKING_URI)
#: All of them, as a list for people has them.
VARIABLES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Variable))


def tracking_uris() -> list[str]:
    """The MLflow tracking URIs in the environment, in order of priority."""
    return [uri for uri in (variable.get() for variable in TRACKING_VARIABLES) if uri is not None]


def runner() -> str:
    """Name of the deployment's runner."""
    return RUNNER.get() or "local"


def tracking_wait_s() -> float:
    """Seconds that a step waits for an MLflow server that does not answer; the default where the value is no number."""
    try:
        seconds = float(TRACKING_WAIT.get() or TRACKING_WAIT.default)
    except ValueError:
        seconds = math.nan
    return seconds if 0.0 <= seconds < math.inf else float(TRACKING_WAIT.default)


def hides_all_gpus() -> bool:
    """Whether the environment hides all GPUs from a process."""
    return os.environ.get(VISIBLE_GPUS.name) in {"", "-1"}


def cache_folder() -> Path:
    """The folder of this package in the user's cache; in the folder for temporary files for a user without a home."""
    try:
        cache = Path(CACHE_HOME.get() or Path.home() / ".cache")
    except RuntimeError:  # a user id without a home, as in some containers
        cache = Path(tempfile.gettempdir())
    return cache / "tfmot_ops"
