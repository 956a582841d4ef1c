"""Airflow and MLflow together, on loopback, over a workbench."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tfmot_ops.errors import StepFailedError
from tools.demo.workbench import Workbench, group

HOST = "127.0.0.1"
_AIRFLOW_PORT, _MLFLOW_PORT = 8080, 5000
#: Both servers together, on two cores that do something else too.
_START_S = 300.0
_POLL_S = 0.5


def free_port(wanted: int = 0) -> int:
    """The wanted port if nobody has it, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise StepFailedError(
        "no free port",
        required="a TCP port on loopback",
        received="none",
        remedy="end a process that listens on one, or allow this one to listen",
    )


def serve(bench: Workbench, say: Callable[[str], None]) -> int:
    """Start both servers, say where they are, stop both with all children on Ctrl-C or SIGTERM.

    Returns:
        Exit code 0.

    Raises:
        StepFailedError: a server exited unexpectedly, or does not come up.
    """
    bench.prepare(say)
    from tfmot_ops.tracking.sqlite_store import locked

    with locked(bench.tracking_uri):
        pass  # the store is made here, as a kill of MLflow's server while it makes one ruins it
    airflow_port, mlflow_port = free_port(_AIRFLOW_PORT), free_port(_MLFLOW_PORT)
    mlflow_url = f"http://{HOST}:{mlflow_port}"
    airflow_log, mlflow_log = bench.new_log("airflow"), bench.new_log("mlflow")
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(path.open("wb")) for path in (airflow_log, mlflow_log)]
        airflow = stack.enter_context(
            group(
                [sys.executable, "-m", "airflow", "standalone"],
                airflow_environment(bench, airflow_port, TFMOT_OPS_MLFLOW_UI=mlflow_url),
                logs[0],
            )
        )
        mlflow = stack.enter_context(group(_mlflow_command(bench, mlflow_port), bench.environment(), logs[1]))
        servers = {"Airflow": (airflow, airflow_log), "MLflow": (mlflow, mlflow_log)}
        say(f"Airflow and MLflow start; logs: {airflow_log} {mlflow_log}")
        with contextlib.suppress(KeyboardInterrupt):
            wait_for(lambda: airflow_is_healthy(airflow_port) and is_ok(mlflow_port, "/health"), servers)
            say(f"Airflow: http://{HOST}:{airflow_port}/dags/optimize_model")
            say(f"MLflow:  {mlflow_url}")
            say("Ctrl-C stops both.")
            while all(process.poll() is None for process, _ in servers.values()):
                time.sleep(_POLL_S)
            _complain(servers)
        say("Stopping both.")
    return 0


def airflow_environment(bench: Workbench, port: int, **more: str) -> dict[str, str]:
    """What `airflow standalone` needs to be told to serve on this port.

    Args:
        bench: the workbench.
        port: of the API server.
        **more: further variables.
    """
    url = f"http://{HOST}:{port}"
    return bench.environment(
        AIRFLOW__API__PORT=str(port),
        AIRFLOW__API__BASE_URL=url,
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"{url}/execution/",
        **more,
    )


def airflow_is_healthy(port: int) -> bool:
    """Whether the scheduler, the DAG processor and the API server all answer."""
    body = _get(port, "/api/v2/monitor/health")
    if body is None:
        return False
    health = json.loads(body)
    return all(
        health.get(part, {}).get("status") == "healthy" for part in ("metadatabase", "scheduler", "dag_processor")
    )


def is_ok(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    return _get(port, path) is not None


def wait_for(ready: Callable[[], bool], servers: dict[str, tuple[subprocess.Popen[bytes], Path]]) -> None:
    """Wait until `ready` says so.

    Raises:
        StepFailedError: a server ended, or it takes too long.
    """
    deadline = time.monotonic() + _START_S
    while not ready():
        _complain(servers)
        if time.monotonic() > deadline:
            raise StepFailedError(
                "the servers do not come up",
                required=f"both healthy within {_START_S:.0f} s",
                received="no answer",
                remedy="read " + " and ".join(str(log) for _, log in servers.values()),
            )
        time.sleep(_POLL_S)


def _complain(servers: dict[str, tuple[subprocess.Popen[bytes], Path]]) -> None:
    for name, (process, log) in servers.items():
        if process.poll() is not None:
            raise StepFailedError(
                f"{name} exited unexpectedly",
                required="a server that runs until Ctrl-C",
                received=f"exit code {process.returncode}",
                remedy=f"read {log}",
            )


def _mlflow_command(bench: Workbench, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", bench.tracking_uri]
    command += ["--artifacts-destination", bench.artifacts.as_uri(), "--host", HOST, "--port", str(port)]
    return [*command, "--workers", "1"]


def _get(port: int, path: str) -> str | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == http.HTTPStatus.OK else None
