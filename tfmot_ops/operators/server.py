"""The MLflow server of a task: where its step records, which page its link opens, and how its step logs in."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow.sdk.exceptions import AirflowNotFoundException

from tfmot_ops.errors import SpecError
from tfmot_ops.operators.links import DEFAULT_UI
from tfmot_ops.operators.mlflow_hook import MlflowHook
from tfmot_ops.system import environment
from tfmot_ops.system.uri_secrets import address

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Server:
    """An MLflow server.

    Attributes:
        uri: tracking URI; empty if nothing is recorded.
        ui: address of its pages.
        secrets: environment variables of a step, with which MLflow's client logs in.
    """

    uri: str
    ui: str
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


def server_of(tracking_uri: str | None, conn_id: str | None) -> Server:
    """The server that the arguments of an operator, or else the deployment, name.

    Args:
        tracking_uri: of the operator. The credentials of a connection are not sent to it, as they belong to the
            connection's own server.
        conn_id: of the operator; None takes the deployment's, `TFMOT_OPS_MLFLOW_CONN_ID`.

    Raises:
        SpecError: there is no such connection, or it names no server; only without a `tracking_uri`.
    """
    conn_id = conn_id or environment.MLFLOW_CONN_ID.get()
    if conn_id and not tracking_uri:
        hook = MlflowHook(conn_id)
        try:
            return Server(hook.tracking_uri, hook.ui.rstrip("/"), hook.environment())
        except AirflowNotFoundException as error:
            raise SpecError(
                f"there is no connection {conn_id}",
                required="an Airflow connection with the address of MLflow",
                received=f"no connection with the id {conn_id}",
                remedy="create it (type `MLflow (tfmot-ops)`), or correct the operator's mlflow_conn_id or "
                f"{environment.MLFLOW_CONN_ID.name}",
            ) from error
    uri = next(filter(None, (tracking_uri, *environment.tracking_uris())), "")
    return Server(uri, _ui_of(conn_id, uri))


def _ui_of(conn_id: str | None, uri: str) -> str:
    if conn_id:
        try:
            return MlflowHook(conn_id).ui.rstrip("/")
        except (AirflowNotFoundException, SpecError):
            # The step does not need the connection; a missing address for its link must not fail the task.
            _LOG.warning("no address of MLflow in the connection %s: the link to MLflow is a guess", conn_id)
    # A template may have rendered to anything; the spec refuses what is no text.
    own = uri if isinstance(uri, str) and uri.startswith(("http://", "https://")) else DEFAULT_UI
    return address(environment.MLFLOW_UI.get() or own)


def keywords_for(start: Callable[..., Any], secrets: Mapping[str, str]) -> dict[str, Any]:
    """The keyword `secrets` of a runner's method `start` or `resume`; empty if there are none.

    Raises:
        SpecError: the runner cannot pass secrets.
    """
    if not secrets:
        return {}
    taken = inspect.signature(start).parameters.values()
    if not any(each.name == "secrets" or each.kind is inspect.Parameter.VAR_KEYWORD for each in taken):
        raise SpecError(
            "the runner cannot pass the credentials of the MLflow connection to the step",
            required="a runner whose methods `start` and `resume` take the keyword `secrets`",
            received=start.__qualname__,
            remedy="add the keyword to the runner, or leave login, password and token out of the connection",
        )
    return {"secrets": dict(secrets)}
