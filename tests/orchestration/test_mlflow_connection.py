"""The connection type of MLflow: how Airflow lists it, what it stands for, and what an operator makes of it."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import airflow
import jsonschema
import pytest
from airflow.sdk import Connection
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.exceptions import AirflowFailException

from tfmot_ops.errors import SpecError, StepFailedError
from tfmot_ops.operators import MlflowHook, TrainOperator
from tfmot_ops.operators.provider import get_provider_info
from tfmot_ops.runners import DockerRunner, FakeRunner, LocalRunner
from tfmot_ops.system import environment

pytestmark = pytest.mark.airflow

SECRET = "s3cret-of-mlflow"  # noqa: S105 - made up
OPTIONS = {"model": "resnet8", "dataset": "digits"}
NONE = dict.fromkeys(("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), "")
CONTEXT = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="train", map_index=-1), "params": {}}
STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture(autouse=True)
def _no_other_server(monkeypatch):
    for variable in environment.VARIABLES:
        if "MLFLOW" in variable.name or "TRACKING" in variable.name:
            monkeypatch.delenv(variable.name, raising=False)


@pytest.fixture
def connection(monkeypatch):
    """A function that defines a connection as a deployment may: by a variable of Airflow's environment."""

    def define(conn_id="mlflow", **fields):
        extra = fields.pop("extra", None)
        document = {"conn_type": "tfmot_ops_mlflow", **fields, **({"extra": extra} if extra else {})}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(document))
        return conn_id

    return define


@pytest.fixture
def serve():
    """A function that serves with a handler until the test ends, and gives the port."""
    servers = []

    def start(handler):
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def operator(runner=None, **arguments):
    return TrainOperator(task_id="train", options=OPTIONS, runner=runner, **arguments)


# --- the provider's information --------------------------------------------------------------------------------------


def test_the_information_fits_airflows_schema_and_names_what_exists():
    info = get_provider_info()
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(info, schema)
    (kind,) = info["connection-types"]
    classes = [kind["hook-class-name"], *info["extra-links"], *info["notifications"]]
    assert import_string(kind["hook-class-name"]).conn_type == kind["connection-type"]
    assert all(isinstance(import_string(each), type) for each in classes)


def test_airflow_shows_the_form_with_a_hidden_token(recwarn):
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.hooks["tfmot_ops_mlflow"].hook_name == "MLflow (tfmot-ops)"
    assert manager.connection_form_widgets["extra__tfmot_ops_mlflow__token"].is_sensitive
    assert not manager.connection_form_widgets["extra__tfmot_ops_mlflow__ui"].is_sensitive
    assert manager.field_behaviours["tfmot_ops_mlflow"]["placeholders"]["host"] == "mlflow.example"
    assert not [each for each in recwarn if "tfmot" in str(each.message)]


def test_settings_are_read_from_airflows_configuration_after_the_environment(monkeypatch):
    options = get_provider_info()["config"]["tfmot_ops"]["options"]
    for variable in environment.VARIABLES:
        if variable.option is not None:
            assert options[variable.option]["description"].startswith(variable.does)
            monkeypatch.delenv(variable.name, raising=False)
            assert variable.get() is None
            monkeypatch.setenv(f"AIRFLOW__TFMOT_OPS__{variable.option.upper()}", "configured")
            assert variable.get() == "configured"
            monkeypatch.setenv(variable.name, "set")
            assert variable.get() == "set"
    assert len(options) == sum(each.option is not None for each in environment.VARIABLES) > 5
    assert environment.CHECKPOINTS.option is None, "a step has no Airflow to ask"


# --- what a connection stands for ------------------------------------------------------------------------------------

ADDRESSES = {
    "a host": ({"host": "mlflow.example"}, "http://mlflow.example"),
    "scheme and port": ({"host": "mlflow.example", "schema": "https", "port": 5000}, "https://mlflow.example:5000"),
    "a path": ({"host": "mlflow.example/base/", "schema": "https", "port": 5000}, "https://mlflow.example:5000/base"),
    "a whole address": ({"host": "https://mlflow.example:444/base", "port": 5000}, "https://mlflow.example:444/base"),
    "version 6": ({"host": "[::1]", "port": 5000}, "http://[::1]:5000"),
}


@pytest.mark.parametrize(("fields", "uri"), ADDRESSES.values(), ids=ADDRESSES)
def test_the_address(connection, fields, uri):
    hook = MlflowHook(connection(**fields))
    assert hook.tracking_uri == hook.ui == uri
    assert hook.environment() == {}


WRONG = {
    "no host": {},
    "another scheme": {"host": "mlflow.example", "schema": "ftp"},
    "a database": {"host": "postgresql://db/mlflow"},
    "a secret in the host": {"host": f"me:{SECRET}@mlflow.example"},
    "half a bracket": {"host": "[::1"},
    "a login alone": {"host": "mlflow.example", "login": "me"},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
def test_a_connection_that_names_no_server_is_refused_and_not_retried(connection, fields):
    with pytest.raises(AirflowFailException) as refused:
        operator(FakeRunner(), mlflow_conn_id=connection(**fields)).execute(CONTEXT)
    assert "connection mlflow" in str(refused.value)
    assert SECRET not in str(refused.value)
    assert MlflowHook("mlflow").test_connection()[0] is False


CREDENTIALS = {
    "login": (
        {"login": "me", "password": SECRET},
        {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": SECRET},
    ),
    "a password alone": ({"password": SECRET}, {"MLFLOW_TRACKING_TOKEN": SECRET}),
    "token": ({"extra": {"token": SECRET}}, {"MLFLOW_TRACKING_TOKEN": SECRET}),
}
each_login = pytest.mark.parametrize(("fields", "variables"), CREDENTIALS.values(), ids=CREDENTIALS)


@each_login
def test_the_credentials_are_the_variables_of_mlflows_client(connection, fields, variables):
    hook = MlflowHook(connection(host="mlflow.example", **fields))
    assert hook.environment() == NONE | variables
    assert SECRET not in hook.tracking_uri + hook.ui


def test_people_may_open_another_address(connection):
    hook = MlflowHook(connection(host="mlflow.internal", extra={"ui": "https://mlflow.example/ui/"}))
    assert hook.tracking_uri == "http://mlflow.internal"
    ran = operator(FakeRunner(), mlflow_conn_id="mlflow")
    run_id = ran.execute(CONTEXT)["tracking_run_id"]
    assert ran.mlflow_run_url == f"https://mlflow.example/ui/#/runs/{run_id}"


# --- what an operator makes of it ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recording(FakeRunner):
    """A FakeRunner that keeps the secrets that it is given."""

    secrets: list[dict[str, str]] = dataclasses.field(default_factory=list, repr=False)

    def start(self, spec, context, log, *, secrets=None):
        self.secrets.append(dict(secrets or {}))
        return super().start(spec, context, log)


def test_the_connection_comes_before_the_deployments_uri_and_after_the_operators_own(connection, monkeypatch):
    monkeypatch.setenv("TFMOT_OPS_TRACKING_URI", "http://deployment.example")
    runner = Recording()
    connection("mine", host="mine.example", password=SECRET)
    connection("default", host="default.example")
    operator(runner).execute(CONTEXT)
    monkeypatch.setenv("TFMOT_OPS_MLFLOW_CONN_ID", "default")
    operator(runner).execute(CONTEXT)
    operator(runner, mlflow_conn_id="mine").execute(CONTEXT)
    operator(runner, mlflow_conn_id="mine", tracking_uri="http://argument.example").execute(CONTEXT)
    hosts = [spec.tracking.uri.removeprefix("http://").partition(".")[0] for spec in runner.specs]
    assert hosts == ["deployment", "default", "mine", "argument"]
    # The credentials of a connection go to its own server only.
    assert [secrets.get("MLFLOW_TRACKING_TOKEN") for secrets in runner.secrets] == [None, None, SECRET, None]


def test_a_connection_that_is_missing_is_named_and_only_guessed_for_a_link():
    with pytest.raises(AirflowFailException, match="there is no connection nowhere"):
        operator(FakeRunner(), mlflow_conn_id="nowhere").execute(CONTEXT)
    ran = operator(FakeRunner(), mlflow_conn_id="nowhere", tracking_uri="http://argument.example")
    ran.execute(CONTEXT)
    assert ran.mlflow_run_url.startswith("http://argument.example/#/runs/")


def test_a_runner_of_the_users_own_that_takes_no_secrets_is_told_so(connection):
    class Old:
        def start(self, spec, context, log):
            return FakeRunner().start(spec, context, log)

    connection(host="mlflow.example")
    assert operator(Old(), mlflow_conn_id="mlflow").execute(CONTEXT)["status"] == "ok"
    connection(host="mlflow.example", password=SECRET)
    with pytest.raises(AirflowFailException, match="take the keyword `secrets`") as refused:
        operator(Old(), mlflow_conn_id="mlflow").execute(CONTEXT)
    assert SECRET not in str(refused.value)


@each_login
def test_a_secret_is_in_the_environment_of_a_local_step_and_nowhere_else(connection, monkeypatch, fields, variables):
    """A real child process says what it has: its environment, its command line and its spec."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of another server")
    runner = LocalRunner(module="stand_in_environment", env={"PYTHONPATH": str(STAND_IN)})
    ran = operator(runner, mlflow_conn_id=connection(host="mlflow.example", **fields))
    lines = []
    monkeypatch.setattr(type(ran), "log", SimpleNamespace(info=lines.append, warning=lines.append))
    answer = ran.execute(CONTEXT)
    # The stand-in gives digests of the values, so that its own answer holds no secret.
    wanted = {name: hash_of(value) for name, value in (NONE | variables).items()}
    assert answer["parameters"]["environment"] == wanted
    assert answer["parameters"]["others_with_a_credential"] == []
    told = json.dumps([answer, lines, ran.mlflow_run_url, repr(runner), {n: str(v) for n, v in vars(ran).items()}])
    assert SECRET not in told
    assert any("looked at my command line and spec" in line for line in lines)


def hash_of(value):
    import hashlib

    return hashlib.sha256(value.encode()).hexdigest()


class Engine(BaseHTTPRequestHandler):
    """A Docker engine as far as the creation of a container, which it refuses."""

    requests: ClassVar[list[str]] = []

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.requests.append(f"{self.path} {body}")
        creates = self.path.split("?")[0].endswith("/containers/create")
        version, images = {"ApiVersion": "1.47"}, [{"Id": "image"}]
        found = version if "version" in self.path else images if "/images/" in self.path else []
        content = json.dumps({"message": "no space"} if creates else found).encode()
        content = b"OK" if self.path.endswith("_ping") else content
        self.send_response(500 if creates else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer  # noqa: N815 - the library's names

    def log_message(self, *_):
        pass


def test_a_secret_is_in_the_environment_of_a_container_and_in_no_other_part_of_the_request(connection, serve):
    port = serve(Engine)
    Engine.requests.clear()
    runner = DockerRunner(docker_url=f"tcp://127.0.0.1:{port}")
    connection(host="mlflow.example", login="me", password=SECRET)
    with pytest.raises(StepFailedError, match="no space") as failed:
        operator(runner, mlflow_conn_id="mlflow").execute(CONTEXT)
    (created,) = [each for each in Engine.requests if "/containers/create" in each]
    container = json.loads(created.partition(" ")[2])
    variables = container.pop("Env")
    assert {f"MLFLOW_TRACKING_PASSWORD={SECRET}", "MLFLOW_TRACKING_USERNAME=me"} <= set(variables)
    assert [each.partition("=")[0] for each in variables if SECRET in each] == ["MLFLOW_TRACKING_PASSWORD"]
    rest = [json.dumps(container), str(failed.value), *(each for each in Engine.requests if each is not created)]
    assert SECRET not in json.dumps(rest)


# --- the button `Test` -----------------------------------------------------------------------------------------------


class Guarded(BaseHTTPRequestHandler):
    """Answers as an MLflow server with a login does."""

    wanted = ""
    answer = b'{"experiments": []}'

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        code = 404 if not self.path.startswith("/base/api/2.0/mlflow/") else 200
        code = 401 if self.headers.get("Authorization", "") != self.wanted else code
        self.send_response(code)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_):
        pass


def test_the_button_tries_address_and_credentials(connection, serve, monkeypatch):
    guarded = serve(Guarded)

    def test(**fields):
        return Connection(**{"conn_id": "tried", "conn_type": "tfmot_ops_mlflow", **fields}).test_connection()

    place = {"host": "127.0.0.1/base", "port": guarded}
    pair = base64.b64encode(f"me:{SECRET}".encode()).decode()
    for header, fields in (
        (f"Basic {pair}", {"login": "me", "password": SECRET}),
        (f"Bearer {SECRET}", {"password": SECRET}),
        (f"Bearer {SECRET}", {"extra": json.dumps({"token": SECRET})}),
    ):
        monkeypatch.setattr(Guarded, "wanted", header)
        assert test(**place, **fields) == (
            True,
            f"MLflow at http://127.0.0.1:{guarded}/base answers and takes these credentials",
        )
        done, message = test(**place, login="me", password="wrong")  # noqa: S106 - made up
        assert (done, "refuses these credentials (HTTP 401)" in message) == (False, True)
    done, message = test(host="127.0.0.1/elsewhere", port=guarded, password=SECRET)
    assert (done, "HTTP 404" in message) == (False, True)
    monkeypatch.setattr(Guarded, "answer", b"<html>")
    assert test(**place, password=SECRET)[1].endswith("answers, but not as MLflow does")
    assert "does not answer" in test(host="127.0.0.1", port=1)[1]
    with pytest.raises(SpecError):
        _ = MlflowHook(connection()).tracking_uri
