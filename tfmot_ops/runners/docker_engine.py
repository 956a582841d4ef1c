"""Connects the provider's DockerOperator to its engine, and reads the variables of a container from a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfmot_ops.errors import SpecError, StepFailedError

if TYPE_CHECKING:
    from airflow.providers.docker.operators.docker import DockerOperator


def connect(operator: DockerOperator) -> Any:
    """The operator's client, connected to the engine.

    Raises:
        StepFailedError: no engine answers.
    """
    from airflow.sdk.exceptions import AirflowException
    from docker.errors import DockerException

    try:
        return operator.cli
    except (AirflowException, DockerException, OSError) as error:
        raise StepFailedError(
            f"no Docker engine answers for step {operator.task_id}",
            required=f"an engine at {operator.docker_url}",
            received=f"{error} (the log of the provider's hook says more)",
            remedy="start it, or correct the runner's `docker_url` or `docker_conn_id`, or DOCKER_HOST",
        ) from error


def variables_of(conn_id: str) -> dict[str, str]:
    """The environment variables in the extra of an Airflow connection.

    Raises:
        SpecError: a value is not a string.
    """
    from airflow.sdk import Connection

    extra = Connection.get(conn_id).extra_dejson
    if not all(isinstance(value, str) for value in extra.values()):
        raise SpecError(
            f"connection {conn_id}: its extra becomes variables",
            required="a JSON object of strings",
            received=", ".join(f"{name}: {type(value).__name__}" for name, value in extra.items()),
            remedy="write each value as a string",
        )
    return {str(name): value for name, value in extra.items()}
