"""What is told and what is left of a pod that fails: the provider and its trigger, on a server in a cluster's place.

The server keeps the pods it is sent, in the state that a case says; the client, the requests and the deferral are real.
"""

import asyncio
import json
import os
import signal
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.errors import TfmotOpsError
from tfmot_ops.runners import KubernetesRunner

pytestmark = pytest.mark.airflow

#: Pods that a namespace takes, one after the other: an endless fallback ends here.
QUOTA = 4


class Cluster(BaseHTTPRequestHandler):
    """The API server: whatever namespace is asked for, there is one."""

    protocol_version = "HTTP/1.1"
    case = SimpleNamespace()

    @classmethod
    def begin(cls, status, events=(), refuses=None, meanwhile=None, secrets_status=201):
        """A case.

        Status of each pod, events, {number of a reading of a pod: HTTP status}, {method: what happens before its first
        request is answered}, HTTP status of the answer to the creation of a Secret.
        """
        said = {"status": status, "events": events, "refuses": refuses or {}, "meanwhile": dict(meanwhile or {})}
        cls.case = SimpleNamespace(**said, pods={}, images=[], reads=0, secrets=[], sent=[])
        cls.case.secrets_status = secrets_status

    def answer(self):
        case, parts = self.case, urllib.parse.urlsplit(self.path).path.split("/")
        size = int(self.headers.get("Content-Length", 0))
        sent = json.loads(self.rfile.read(size)) if size else {}
        if self.command == "POST" and parts[-1] == "secrets":
            case.secrets.append(sent)
            self.give(case.secrets_status, sent if case.secrets_status == 201 else {"kind": "Status"})
        elif self.command == "POST" and len(case.images) == QUOTA:
            self.give(403, {"kind": "Status", "code": 403, "message": "exceeded quota"})
        elif self.command == "POST":
            case.images.append(sent["spec"]["containers"][0]["image"])
            sent["metadata"]["uid"] = f"uid-{len(case.images)}"
            case.sent.append(sent)
            case.pods[sent["metadata"]["name"]] = sent | {"status": case.status}
            self.give(201, sent)
        elif parts[-1] in ("pods", "events"):
            self.give(200, {"items": [*case.events] if parts[-1] == "events" else [*case.pods.values()]})
        elif parts[-1] == "log":
            self.give(200, None)
        else:
            case.reads += self.command == "GET"
            pod = case.pods.pop(parts[-1], None) if self.command == "DELETE" else case.pods.get(parts[-1])
            refused = case.refuses.get(case.reads) if self.command == "GET" else None
            code = refused or (404 if pod is None else 200)
            self.give(code, {"kind": "Status", "code": code, "message": "refused"} if code >= 400 else pod)

    do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 - the library's names

    def give(self, code, body):
        self.case.meanwhile.pop(self.command, lambda: None)()
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def kubeconfig(port, folder):
    user = {"name": "u", "user": {}}
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    parts = {"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}
    path = Path(folder) / "kubeconfig"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **parts}), encoding="utf-8")
    return str(path)


def run(config_file, case, on_return=None, device="cpu", secrets=None, **options):
    """A step as Airflow runs it, with its triggerer: what is told, logged, and left.

    `on_return` is what `meanwhile` is once a deferred step comes back.
    """
    from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred

    def time_out(*_):
        raise AirflowTaskTimeout

    Cluster.begin(**case)
    places = {"namespace": "jobs", "kubernetes_conn_id": None, "config_file": config_file}
    timeouts = {"schedule_timeout_s": 1, "startup_timeout_s": 1}
    runner = KubernetesRunner(image="cpu:1", gpu_image="gpu:1", **places, **timeouts, **options)
    asked = {"kind": "train", "model": "resnet8", "dataset": "digits"}
    document = {"step_id": "train", "device": device, "output_uri": "/data", "options": asked}
    spec = StepSpec.model_validate(document)
    ti = SimpleNamespace(dag_id="d", task_id="train", map_index=-1, try_number=1, xcom_push=lambda *_, **__: None)
    context, log, step = {"ti": ti, "run_id": "r", "dag": None}, [], None
    signal.signal(signal.SIGTERM, lambda *_: (step.kill(), KILLED.set()))
    signal.signal(signal.SIGALRM, time_out)
    passed = {} if secrets is None else {"secrets": secrets}
    step, told = runner.start(spec, context, log.append, **passed), "deferred again and again"
    for _ in range(QUOTA):
        try:
            told = f"{step.wait()}"
        except TaskDeferred as deferred:
            event = asyncio.run(anext(deferred.trigger.run())).payload
            Cluster.case.meanwhile |= on_return or {}
            step = runner.resume(spec, context, log.append, event, **passed)
            continue
        except (TfmotOpsError, AirflowTaskTimeout) as error:
            told = str(error) or type(error).__name__
        break
    case = Cluster.case
    received = {"images": case.images, "secrets": case.secrets, "sent": case.sent, "left": list(case.pods)}
    return {"told": told, "log": log, **received}


KILLED = threading.Event()


def kill():
    """End the task as Airflow does: its handler returns, and the task goes on."""
    KILLED.clear()
    os.kill(os.getpid(), signal.SIGTERM)
    KILLED.wait(10)


def time_out():
    """End the task as Airflow does: out of whatever it waits for."""
    os.kill(os.getpid(), signal.SIGALRM)


def pod(phase, *states, scheduled="True", **status):
    condition = {"type": "PodScheduled", "status": scheduled, "message": "0/1 nodes are available"}
    rest = {"image": "", "imageID": "", "ready": False, "restartCount": 0}
    names = ("base", "airflow-xcom-sidecar")
    containers = [{"name": name, "state": state, **rest} for name, state in zip(names, states, strict=False)]
    return {"status": {"phase": phase, "conditions": [condition], "containerStatuses": containers or None, **status}}


def waiting(reason, message=None):
    return pod("Pending", {"waiting": {"reason": reason, "message": message}})


def ended(phase, code, **status):
    """A pod whose step ended 10 s after its start."""
    state = {"terminated": {"exitCode": code, "reason": "Error", "finishedAt": "2026-01-01T00:00:10Z"}}
    return pod(phase, state, state, startTime="2026-01-01T00:00:00Z", **status)


def warning(second, reason, message, kind="Warning"):
    at = f"2026-01-01T00:00:0{second}Z"
    told = {"type": kind, "reason": reason, "message": message, "lastTimestamp": at}
    return {**told, "metadata": {"name": "event", "creationTimestamp": at}, "involvedObject": {}}


NO_NODE = pod("Pending", scheduled="False")
NO_IMAGE = waiting("ErrImagePull", "cpu:1: not found")
EVENTS = [
    warning(8, "FailedMount", 'configmap "data" not found'),
    warning(1, "FailedScheduling", "no node at first"),
    warning(9, "Pulling", "pulling", kind="Normal"),
]
OVER = {"reason": "DeadlineExceeded", "message": "Pod was active longer than the specified deadline"}
FALLBACK = {"case": NO_NODE, "device": "gpu", "fallback": Device.CPU}
#: What the connection of MLflow gives a step.
TOKEN = {"MLFLOW_TRACKING_TOKEN": "t0ken-of-mlflow", "MLFLOW_TRACKING_USERNAME": ""}
CASES = {
    "with-secrets": {"case": NO_IMAGE, "secrets": TOKEN, "env_from": [{"configMapRef": {"name": "own"}}]},
    "with-secrets-deferred": {"case": NO_IMAGE, "secrets": TOKEN, "deferrable": True},
    "fallback-with-secrets": {**FALLBACK, "secrets": TOKEN},
    "secrets-there-already": {"case": {**NO_IMAGE, "secrets_status": 409}, "secrets": TOKEN},
    "secrets-forbidden": {"case": {**NO_IMAGE, "secrets_status": 403}, "secrets": TOKEN},
    "fallback": FALLBACK,
    "fallback-deferred": {**FALLBACK, "deferrable": True},
    "fallback-named-in-resources": {
        **FALLBACK,
        "deferrable": True,
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    },
    "kill-in-creation": {"case": {**NO_IMAGE, "meanwhile": {"POST": kill}}},
    "kill-in-creation-deferred": {"case": {**NO_IMAGE, "meanwhile": {"POST": kill}}, "deferrable": True},
    "kill-on-return": {"case": NO_IMAGE, "on_return": {"GET": kill}, "deferrable": True},
    "time-out-in-creation": {"case": {**NO_IMAGE, "meanwhile": {"POST": time_out}}},
    "time-out-in-creation-deferred": {"case": {**NO_IMAGE, "meanwhile": {"POST": time_out}}, "deferrable": True},
    "no-gpu": {"case": NO_NODE, "device": "gpu"},
    # The second reading is the look before the clean-up.
    "look-forbidden": {"case": {**NO_IMAGE, "refuses": {2: 403}}},
    "look-failed-once": {"case": {**NO_IMAGE, "refuses": {2: 500}}},
    "image": {"case": NO_IMAGE},
    "secret": {"case": waiting("CreateContainerConfigError", 'secret "mlflow" not found')},
    "volume": {"case": {**waiting("ContainerCreating"), "events": EVENTS}},
    "silent": {"case": waiting("ContainerCreating")},
    "deadline": {"case": ended("Failed", 137, **OVER), "deadline_s": 10},
    # What the node's agent says while the other container still ends.
    "deadline-untold": {"case": ended("Running", 143), "deadline_s": 10},
    "signal-before-it": {"case": ended("Running", 143), "deadline_s": 11},
    "evicted": {"case": ended("Failed", 137, reason="Evicted", message="low on memory")},
}


@pytest.fixture(scope="module")
def answers(bench, run_python):
    # In a process of its own: Airflow makes its home where its environment says at import.
    return json.loads(run_python([__file__], bench.environment()).rpartition("\nanswer ")[2])


@pytest.mark.slow
def test_no_pod_is_left(answers):
    assert {name: answer["left"] for name, answer in answers.items() if answer["left"]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("fallback")])
def test_a_fallback_that_finds_no_node_either_ends_there(answers, case):
    answer = answers[case]
    assert answer["images"] == ["gpu:1", "cpu:1"]
    assert answer["log"] == ["no node takes the GPU pod (0/1 nodes are available): the runner falls back to the CPU"]
    assert "no node takes the CPU pod of step train" in answer["told"]
    assert "`fallback`" not in answer["told"]


@pytest.mark.parametrize("case", [name for name in CASES if "with-secrets" in name])
def test_each_pod_owns_a_secret_with_its_variables_and_holds_no_value_of_it(answers, case):
    answer = answers[case]
    assert len(answer["secrets"]) == len(answer["sent"]) == len(answer["images"])
    for number, (secret, pod) in enumerate(zip(answer["secrets"], answer["sent"], strict=True), start=1):
        name = pod["metadata"]["name"]
        assert secret["stringData"] == TOKEN
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": f"uid-{number}"}
        assert secret["metadata"]["ownerReferences"] == [owner]
        step, sidecar = pod["spec"]["containers"]
        assert step["envFrom"][0] == {"secretRef": {"name": secret["metadata"]["name"]}}
        assert not sidecar.get("envFrom")
    assert "t0ken" not in json.dumps([answer["sent"], answer["log"], answer["told"]])
    if case == "with-secrets":
        # Of two sources of a variable Kubernetes takes the last one: the runner's own wins.
        assert step["envFrom"][1:] == [{"configMapRef": {"name": "own"}}]


def test_a_retry_that_takes_up_a_pod_takes_its_secret_for_its_own(answers):
    assert "ErrImagePull" in answers["secrets-there-already"]["told"]


def test_a_cluster_that_takes_no_secret_is_told_and_the_pod_goes(answers):
    told = answers["secrets-forbidden"]["told"]
    assert "a role with `create` on `secrets` in the namespace jobs" in told
    assert "runner's env_from" in told
    assert "t0ken" not in told


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("kill")])
def test_a_kill_is_told_as_one(answers, case):
    assert answers[case]["images"] == ["cpu:1"]
    assert answers[case]["told"].splitlines()[0] == "step train was stopped, as its task was"


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("time-out")])
def test_a_time_out_stays_one(answers, case):
    assert answers[case]["images"] == ["cpu:1"]
    assert answers[case]["told"] == "AirflowTaskTimeout"


@pytest.mark.parametrize(
    ("case", "summary", "required", "received", "remedy"),
    [
        ("no-gpu", "takes the GPU pod", "within 1 s", "0/1 nodes are available", "set its `fallback`"),
        ("look-forbidden", "could not be read", "a cluster that answers", "403", "role may get pods"),
        ("look-failed-once", "ErrImagePull", "an image", "cpu:1: not found", "`image_pull_secrets`"),
        ("image", "ErrImagePull", "an image", "cpu:1: not found", "`image_pull_secrets`"),
        ("secret", "CreateContainerConfigError", "Secrets", 'secret "mlflow" not found', "`env_from`"),
        ("volume", "ContainerCreating", "`startup_timeout_s`, 1 s", 'FailedMount: configmap "data"', "volumes"),
        ("silent", "ContainerCreating", "`startup_timeout_s`, 1 s", "the state ContainerCreating", "volumes"),
        ("deadline", "DeadlineExceeded", "`deadline_s`, 10 s", "longer than the specified", "raise `deadline_s`"),
        ("deadline-untold", "as it ran longer than", "`deadline_s`, 10 s", "exit code 143", "raise `deadline_s`"),
        ("signal-before-it", "was killed by SIGTERM", "", "exit code 143", "the task was stopped"),
        ("evicted", "was ended: Evicted", "a node that runs", "low on memory", "`resources`"),
    ],
)
def test_what_is_told(answers, case, summary, required, received, remedy):  # noqa: PLR0917 - a table's columns
    told = answers[case]["told"]
    assert summary in told.partition("\n")[0]
    for name, words in {"required": required, "received": received, "remedy": remedy}.items():
        assert any(words in line for line in told.splitlines() if f"  {name}:" in line) or not words, told


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config_file = kubeconfig(server.server_port, os.environ["AIRFLOW_HOME"])
    print("\nanswer " + json.dumps({name: run(config_file, **case) for name, case in CASES.items()}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
