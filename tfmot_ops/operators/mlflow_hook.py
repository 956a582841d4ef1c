"""MlflowHook: the address and the credentials of MLflow from an Airflow connection."""

from __future__ import annotations

import base64
import json
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from airflow.sdk import BaseHook
from airflow.sdk.log import mask_secret

from tfmot_ops.contract.refusal import quoted
from tfmot_ops.errors import SpecError
from tfmot_ops.system.uri_secrets import has_secret

if TYPE_CHECKING:
    from airflow.sdk import Connection

# MLflow's own variables with the credentials of a tracking server.
_TOKEN, _USERNAME, _PASSWORD = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_SCHEMES = ("http", "https")
_TIMEOUT_S = 10.0
#: Needs a login where the server asks for one, which MLflow's `/health` and `/version` do not.
_ASKED = "/api/2.0/mlflow/experiments/search"


class MlflowHook(BaseHook):
    """Reads a connection of the type `tfmot_ops_mlflow`; any other type with a host is read in the same way.

    Fields of the connection: `host` (a name, perhaps with a path, or a whole address), `schema` (`http` or `https`, the
    default is `http`) and `port`; `login` and `password`, or a token: the extra's `token`, or a `password` without a
    login. The extra's `ui` is the address that people open in a browser, where it differs.

    Args:
        mlflow_conn_id: id of the connection.
        **kwargs: as for Airflow's BaseHook.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "tfmot_ops_mlflow"
    conn_type = "tfmot_ops_mlflow"
    hook_name = "MLflow (tfmot-ops)"

    def __init__(self, mlflow_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id
        self._known: Connection | None = None

    @property
    def _connection(self) -> Connection:
        """The connection; Airflow raises AirflowNotFoundException if there is none."""
        if self._known is None:
            self._known = self.get_connection(self.mlflow_conn_id)
            for secret in filter(None, (self._known.password, self._extra("token"))):
                mask_secret(secret)
        return self._known

    @property
    def tracking_uri(self) -> str:
        """Address of the server for steps, without a secret: `https://mlflow.example:5000/path`.

        Raises:
            SpecError: the connection names no http or https server.
        """
        connection = self._connection
        host = connection.host or ""
        address = host if "://" in host else f"{connection.schema or 'http'}://{host}"
        scheme, _, rest = address.partition("://")
        name, slash, path = rest.partition("/")
        if connection.port and ":" not in name.rpartition("]")[2]:
            name = f"{name}:{connection.port}"
        uri = f"{scheme}://{name}{slash}{path}".rstrip("/")
        if scheme not in _SCHEMES or not _has_host(uri) or has_secret(uri):
            raise SpecError(
                f"connection {self.mlflow_conn_id} names no MLflow server",
                required="a host, with the scheme http or https; login, password and token in their own fields",
                received=quoted(uri),
                remedy="correct host, schema and port of the connection",
            )
        return uri

    @property
    def ui(self) -> str:
        """Address of MLflow in a browser: the extra's `ui`, or else the address of the server."""
        self._connection  # noqa: B018 - read first, so that the secrets are masked
        return str(self._extra("ui") or self.tracking_uri)

    def environment(self) -> dict[str, str]:
        """The variables with which MLflow's client logs in; secret. Empty for a connection without credentials.

        Variables that the connection does not need are empty, so that a step does not send this server the credentials
        of another one, which may be set where the step runs.

        Raises:
            SpecError: the connection has a login without a password.
        """
        connection, none = self._connection, dict.fromkeys((_TOKEN, _USERNAME, _PASSWORD), "")
        token = self._extra("token")
        if token or (connection.password and not connection.login):
            return {**none, _TOKEN: str(token or connection.password)}
        if not connection.login:
            return {}
        if not connection.password:
            raise SpecError(
                f"connection {self.mlflow_conn_id} has a login without a password",
                required="login and password, or a token alone",
                received="a login alone",
                remedy="add the password to the connection, or remove the login",
            )
        return {**none, _USERNAME: connection.login, _PASSWORD: connection.password}

    def test_connection(self) -> tuple[bool, str]:
        """Whether the server answers and takes the credentials, and a sentence for people; called by Airflow's UI."""
        try:
            uri = self.tracking_uri
            request = urllib.request.Request(  # noqa: S310 - http or https, see tracking_uri
                uri + _ASKED,
                json.dumps({"max_results": 1}).encode(),
                {"Content-Type": "application/json", **_authorization(self.environment())},
            )
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - see above
                found = json.loads(answer.read())
        except SpecError as error:
            return False, str(error)
        except HTTPError as error:
            if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                return False, f"{uri} refuses these credentials (HTTP {error.code}): correct login, password or token"
            return False, f"{uri} answers HTTP {error.code}: this is no MLflow server, or one that fails"
        except (OSError, HTTPException) as error:
            return False, f"{uri} does not answer: {type(error).__name__}"
        except ValueError:
            found = None
        if not isinstance(found, dict):
            return False, f"{uri} answers, but not as MLflow does"
        return True, f"MLflow at {uri} answers and takes these credentials"

    def _extra(self, name: str) -> Any:
        return self._known.extra_dejson.get(name) if self._known is not None else None


def _authorization(variables: dict[str, str]) -> dict[str, str]:
    """The header that MLflow's client would send with these variables."""
    if token := variables.get(_TOKEN):
        return {"Authorization": f"Bearer {token}"}
    if name := variables.get(_USERNAME):
        pair = base64.b64encode(f"{name}:{variables[_PASSWORD]}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}


def _has_host(uri: str) -> bool:
    try:
        return bool(urlsplit(uri).hostname)
    except ValueError:  # such as a bracket without its pair
        return False
