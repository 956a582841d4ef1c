"""The folder `.demo` of a checkout: an Airflow home, an MLflow store, logs, and how processes are run over them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tfmot_ops.errors import SpecError, StepFailedError
from tfmot_ops.system import processes
from tfmot_ops.system.environment import ALLOWED_PATHS, TRACKING_URI

_CHECKOUT = Path(__file__).resolve().parents[2]
#: Seconds between SIGTERM and SIGKILL of a group.
GRACE_S = 8.0
_POLL_S = 0.1
#: Environment variable that marks every process of a group.
_MARK = "TFMOT_OPS_GROUP"
_LOOKS = 2
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Workbench:
    """Where the demo keeps what it makes.

    Attributes:
        home: the folder; Airflow's home, the MLflow store, its artifacts and the logs are in it.
        dags: folder of the DAGs.
    """

    home: Path
    dags: Path

    @classmethod
    def of_checkout(cls, home: Path | None = None) -> Workbench:
        """A bench for the DAGs of the checkout this package was installed from.

        Args:
            home: None is `.demo` in the checkout.

        Raises:
            SpecError: the package was not installed from a checkout.
        """
        root = _CHECKOUT
        if not (root / "dags" / "optimize_model.py").exists():
            raise SpecError(
                "the demo needs a checkout",
                required="dags/optimize_model.py beside the package",
                received=f"no such file in {root}",
                remedy="clone the repository and run `make demo` there",
            )
        return cls(home=home.resolve() if home else root / ".demo", dags=root / "dags")

    @property
    def tracking_uri(self) -> str:
        """MLflow's store."""
        return f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        """Where MLflow keeps the artifacts of a SQLite store: beside it."""
        return self.home / "mlflow-artifacts"

    @property
    def airflow_home(self) -> Path:
        """Airflow's home; its airflow.cfg holds secrets."""
        return self.home / "airflow"

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment with the settings of Airflow and MLflow on top.

        Args:
            **more: further variables.
        """
        settings = {
            "AIRFLOW_HOME": str(self.airflow_home),
            # Said although it is the default: what the user's shell knows of another Airflow must not be touched.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.airflow_home / 'airflow.db'}",
            "AIRFLOW_CONFIG": str(self.airflow_home / "airflow.cfg"),
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.airflow_home / "logs"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            # Each slot is a process that stays: the default of 32 takes two gigabytes.
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            # No log-in. The servers listen on loopback only.
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            # Else MLflow's server starts eight processes that evaluate language models, which nothing here uses.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            TRACKING_URI.name: self.tracking_uri,
            # `airflow standalone` looks for `airflow` on the path.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONUNBUFFERED": "1",
            # The tools of the checkout are in no installed package.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")])),
        }
        # Whoever can reach these servers is at this machine, and may read its files anyway.
        mine = {ALLOWED_PATHS.name: "/,s3://,gs://,runs:/,models:/,mlflow-artifacts:/"}
        return {**mine, **os.environ, **settings, **more}

    def new_log(self, name: str) -> Path:
        """A log file that does not exist yet."""
        folder = self.home / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.log"

    def prepare(self, say: Callable[[str], None]) -> None:
        """Make Airflow's database, once for each version of Airflow.

        Raises:
            StepFailedError: `airflow db migrate` failed.
        """
        done = self.airflow_home / f".migrated-{metadata.version('apache-airflow')}"
        if done.exists():
            return
        self.airflow_home.mkdir(parents=True, exist_ok=True)
        say("Making Airflow's database (the first time only).")
        log_file = self.new_log("migrate")
        with log_file.open("wb") as log:
            code = subprocess.call(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
            )
        if code != 0:
            raise StepFailedError(
                "Airflow's database could not be made",
                required="exit code 0 of `airflow db migrate`",
                received=str(code),
                remedy=f"read {log_file}; `make clean` starts afresh",
            )
        done.touch()

    def local_path(self, uri: str) -> Path:
        """The file that an artifact of this bench's MLflow store is.

        Raises:
            StepFailedError: it is not there.
        """
        run_id, _, name = uri.removeprefix("runs:/").partition("/")
        # The folder between is the experiment's.
        found = next(self.artifacts.glob(f"*/{run_id}/artifacts/{name}"), None)
        if found is None:
            raise StepFailedError(
                f"artifact {uri} is missing",
                required=f"a file {name} of the run in {self.artifacts}",
                received="none",
                remedy="run the demo again; `make clean` starts afresh",
            )
        return found


def stop_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal raise KeyboardInterrupt, once: a second must not break the tidying."""
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)


def _stop(_number: int, _frame: Any) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def group(command: list[str], env: Mapping[str, str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; on leaving, it and all it started, directly or not, is ended.

    Args:
        command: what to run.
        env: its whole environment.
        output: where stdout and stderr go.
    """
    # Whatever the process starts inherits it, in whichever session, by whichever parent.
    name = secrets.token_hex(16)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**env, _MARK: name},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process, f"{_MARK}={name}".encode())
        if process.stdout is not None:
            process.stdout.close()


def _end(process: subprocess.Popen[bytes], mark: bytes) -> None:
    """SIGTERM to the process's group, a grace period, SIGKILL to what is left of its session and of what has its mark.

    The session, because Airflow puts each task into a group of its own, and a process that renames itself overwrites
    its environment; the mark, because a step leads a session of its own. Neither depends on when a process was
    started, so one that is born while the others die is found too.
    """
    if process.poll() is None:
        processes.signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    # Gone is what two looks do not find: while a process executes a program, it has no environment for a moment.
    looks = 0
    while looks < _LOOKS:
        left = _left(process, mark)
        looks = 0 if left else looks + 1
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _left(process: subprocess.Popen[bytes], mark: bytes) -> list[int]:
    """Processes that run in the session or have the mark; without /proc, the leader only."""
    found = [process.pid] if process.poll() is None else []
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or int(entry.name) in found:
                continue
            # The state comes after the name, which may hold anything: see proc(5).
            is_zombie = (entry / "stat").read_bytes().rpartition(b") ")[2].startswith(b"Z")
            in_session = os.getsid(int(entry.name)) == process.pid
            if (in_session and not is_zombie) or mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
