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

#: Seconds between SIGTERM and SIGKILL of a group.
GRACE_S = 8.0
_POLL_S = 0.1
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
        root = Path(__file__).resolve().parents[2]
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
            "TFMOT_OPS_TRACKING_URI": self.tracking_uri,
            # `airflow standalone` looks for `airflow` on the path.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONUNBUFFERED": "1",
        }
        return {**os.environ, **settings, **more}

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
                f"artifact {uri} is missing", required=f"a file {name} of the run in {self.artifacts}", received="none"
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
    """A process in a session of its own; on leaving, the process and everything of its session is ended.

    Args:
        command: what to run.
        env: its whole environment.
        output: where stdout and stderr go.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(env),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_session(process)
        if process.stdout is not None:
            process.stdout.close()


def end_session(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process's group, a grace period, SIGKILL to what is left of its session and its descendants.

    The session, because Airflow puts each task into a group of its own; the descendants, because a step leads a session
    of its own, and takes a moment to notice that its parent is gone.
    """
    descendants = _descendants(process.pid)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while _left(process, descendants) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    while left := _left(process, descendants):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _left(process: subprocess.Popen[bytes], descendants: Mapping[int, str]) -> list[int]:
    """Processes of the session, and given descendants, that run; the leader is reaped on the way."""
    process.poll()
    return [
        pid
        for pid, (state, _, started) in _processes().items()
        if state != "Z" and (_session(pid) == process.pid or descendants.get(pid) == started)
    ]


def _descendants(pid: int) -> dict[int, str]:
    """Every process below `pid`, with its start time, as a pid is given out again."""
    processes, found, parents = _processes(), dict[int, str](), {pid}
    while parents:
        below = {child: started for child, (_, parent, started) in processes.items() if parent in parents}
        found |= below
        parents = set(below)
    return found


def _processes() -> dict[int, tuple[str, int, str]]:
    """Pid -> (state, parent's pid, start time) of every process; empty where there is no /proc."""
    found = {}
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                # After the name, which may hold anything: see proc(5), fields 3, 4 and 22.
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                found[int(entry.name)] = fields[0], int(fields[1]), fields[19]
    return found


def _session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None
