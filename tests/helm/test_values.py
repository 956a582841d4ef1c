"""The values: what is refused, in which words, and the README's table of them."""

from __future__ import annotations

import json

import helm_python
import pytest
import yaml
from rendering import CHART, GLUE, TRIAL, deployed_runner, merged, objects, render, values_of

REFUSED = {
    "unknown": ({"bogus": 1}, ["'bogus' not allowed"]),
    "misspelt": ({"jobs": {"namespac": "x"}}, ["/jobs", "'namespac' not allowed"]),
    "misspelt_deep": ({"runner": {"resources": {"limit": {}}}}, ["/runner/resources", "'limit' not allowed"]),
    "type": ({"components": {"airflow": "yes"}}, ["/components/airflow", "got string, want boolean"]),
    "number": ({"jobs": {"quota": {"pods": 10}}}, ["/jobs/quota/pods", "got number, want string"]),
    "quantity": (
        {"runner": {"resources": {"limits": {"memory": "8 GB"}}}},
        ["/runner/resources/limits/memory", "8 GB"],
    ),
    "choice": ({"runner": {"name": "kubernets"}}, ["/runner/name", "'kubernetes', 'docker', 'local'"]),
    "executor": ({"airflow": {"executor": "LocalExecuter"}}, ["/airflow/executor", "LocalExecuter"]),
    "uri": ({"tracking": {"uri": "mlflow:5000"}}, ["/tracking/uri", "mlflow:5000"]),
    "peer": (
        {"networkPolicy": {"artifactStore": {"to": [{}]}}},
        ["/networkPolicy/artifactStore/to/0", "minProperties"],
    ),
    "everywhere": ({"networkPolicy": {"dns": {"to": []}}}, ["/networkPolicy/dns/to", "minItems"]),
    "dag": ({"dags": {"files": {"../x.py": "1"}}}, ["/dags/files", "../x.py"]),
    "name": ({"jobs": {"namespace": "My_Jobs"}}, ["/jobs/namespace", "My_Jobs"]),
    "argument": ({"runner": {"options": {"imge": "x"}}}, ["/runner/options", "'imge' not allowed"]),
    "argument_type": ({"runner": {"options": {"gpus": "2"}}}, ["/runner/options/gpus", "got string, want integer"]),
    "argument_of_another": (
        {"runner": {"name": "docker", "options": {"namespace": "x"}}},
        ["/runner/options", "'namespace' not allowed"],
    ),
    "argument_secret": (
        {"runner": {"options": {"env_from": [{"AWS_SECRET": "x"}]}}},
        ["/runner/options/env_from/0", "'AWS_SECRET' not allowed"],
    ),
    "missing": ({"runner": {"resources": None}}, ["/runner", "missing property 'resources'"]),
    "fallback": ({"gpu": {"fallback": "gpu"}}, ["/gpu/fallback", "'', 'cpu'"]),
    "secret_value": ({"runner": {"secrets": [{"AWS_SECRET": "x"}]}}, ["/runner/secrets/0", "got object, want string"]),
}
#: What compares two values or must not be repeated, so that a schema cannot say it: required, received, remedy.
CONFLICTS = {
    "tracking": (merged(GLUE, {"tracking": {"uri": ""}}), ["tracking.uri", "received: nothing"]),
    "policy": (merged(GLUE, {"networkPolicy": {"mlflow": {"to": []}}}), ["networkPolicy.mlflow.to", "everywhere"]),
    "launcher": ({"launcher": {"serviceAccount": {"name": "me"}}}, ["launcher.serviceAccount.name, me", "together"]),
    "launcher_celery": (
        {"airflow": {"workers": {"celery": {"serviceAccount": {"name": "me"}}}}},
        ["airflow.workers.celery.serviceAccount.name equal", "received: me"],
    ),
    "launcher_kubernetes": (
        {"airflow": {"workers": {"kubernetes": {"serviceAccount": {"name": None}}}}},
        ["airflow.workers.kubernetes.serviceAccount.name equal", "received: nothing"],
    ),
    "quota": (
        {"runner": {"resources": {"limits": {"memory": "32Gi"}}}},
        ["admits 4 steps", "limits.memory: 96Gi, which admits 2"],
    ),
    "two_pods": ({"airflow": {"executor": "KubernetesExecutor"}}, ["airflow.allowPodLaunching=true", "false"]),
    "namespace": ({"jobs": {"namespace": "tfmot-ops"}}, ["jobs.namespace apart", "received: tfmot-ops"]),
}


#: What would be in a ConfigMap: values with a secret in them, and what is said instead of it.
SECRET = "s3cr3t"  # noqa: S105 - nobody's
SECRETS = {
    "uri": ({"tracking": {"uri": f"https://me:{SECRET}@mlflow.example/x"}}, ["tracking.uri", "runner.secrets"]),
    "uri_token": ({"tracking": {"uri": f"https://{SECRET}@mlflow.example"}}, ["tracking.uri", "runner.secrets"]),
    "ui": ({"tracking": {"ui": f"http://me:{SECRET}@mlflow.example"}}, ["tracking.ui", "people give their own"]),
    **{
        name: ({"runner": {"options": {"env": {name: SECRET}}}}, [f"runner.options.env.{name} ", "env_from"])
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "PGPASSWORD", "api_key")
    },
    "value": (
        {"runner": {"options": {"env": {"HTTPS_PROXY": f"http://me:{SECRET}@proxy.example"}}}},
        ["runner.options.env.HTTPS_PROXY ", "env_from"],
    ),
    "docker": (
        {"runner": {"name": "docker", "options": {"env": {"HF_TOKEN": SECRET}}}},
        ["runner.options.env.HF_TOKEN ", "env_conn_id"],
    ),
    "local": (
        {"runner": {"name": "local", "options": {"env": {"HF_TOKEN": SECRET}}}},
        ["runner.options.env.HF_TOKEN ", "airflow.extraEnvFrom"],
    ),
}
#: Variables that are none, however they sound; and an address with an @ that is none before a host.
OPEN = {
    "runner": {
        "options": {"env": {"TOKENIZERS_PARALLELISM": "false", "SSL_KEY_FILE": "/tls/key", "PROXY": "http://p:1"}}
    },
    "tracking": {"uri": "http://mlflow.example:5000/@me"},
}


PEER = [{"ipBlock": {"cidr": "192.0.2.3/32"}}]
PORT = [{"port": 8443, "protocol": "TCP"}]
TOLERATION = [{"key": "spot", "operator": "Exists"}]
#: Another value of each that is ours, which must change what is rendered.
OTHERWISE = {
    "components.airflow": False,
    "components.mlflow": False,
    "jobs.namespace": "elsewhere",
    "jobs.createNamespace": False,
    "jobs.serviceAccount.name": "other",
    "jobs.serviceAccount.annotations": {"team": "models"},
    "jobs.quota": {"pods": "9"},
    "jobs.limitRange.default": {"memory": "2Gi"},
    "jobs.limitRange.defaultRequest": {"memory": "512Mi"},
    "jobs.limitRange.max": {"memory": "64Gi"},
    "launcher.serviceAccount.create": False,
    "launcher.serviceAccount.name": "other",
    "launcher.serviceAccount.annotations": {"team": "models"},
    "runner.name": "local",
    "runner.image": "other:1",
    "runner.deferrable": False,
    "runner.resources.requests": {"cpu": "2"},
    "runner.resources.limits": {"cpu": "5"},
    "runner.nodeSelector": {"zone": "a"},
    "runner.tolerations": TOLERATION,
    "runner.annotations": {"team": "models"},
    "runner.secrets": ["tfmot-ops-s3"],
    "runner.options": {"startup_timeout_s": 900},
    "gpu.enabled": True,
    "gpu.image": "other:1",
    "gpu.count": 2,
    "gpu.nodeSelector": {"pool": "gpu"},
    "gpu.tolerations": TOLERATION,
    "gpu.fallback": "cpu",
    "tracking.uri": "http://mlflow.example",
    "tracking.ui": "http://mlflow.example",
    "networkPolicy.enabled": False,
    "networkPolicy.release.enabled": True,
    "networkPolicy.release.from": PEER,
    "networkPolicy.dns.to": PEER,
    "networkPolicy.dns.ports": PORT,
    "networkPolicy.mlflow.to": PEER,
    "networkPolicy.mlflow.ports": PORT,
    "networkPolicy.artifactStore.to": PEER,
    "networkPolicy.artifactStore.ports": PORT,
    "dags.files": {"mine.py": "1"},
    "serviceMonitor.enabled": True,
    "serviceMonitor.interval": "10s",
    "serviceMonitor.labels": {"release": "prometheus"},
}
#: What these need beside them to have an effect, and why.
POOL = ({"gpu": {"enabled": True}}, "describes a pool")
MONITOR = ({"serviceMonitor": {"enabled": True}}, "describes a ServiceMonitor")
NOT_ALONE = {
    "components.mlflow": (merged(GLUE, {"components": {"airflow": True, "mlflow": True}}), "steps need another MLflow"),
    "launcher.serviceAccount.name": ({"components": {"airflow": False}}, "Airflow's parts have to run as the same"),
    "gpu.image": POOL,
    "gpu.count": POOL,
    "gpu.nodeSelector": POOL,
    "gpu.tolerations": POOL,
    "networkPolicy.artifactStore.ports": (
        {"networkPolicy": {"artifactStore": {"to": PEER}}},
        "without peers there is no way to it",
    ),
    "networkPolicy.release.from": ({"networkPolicy": {"release": {"enabled": True}}}, "there is no policy otherwise"),
    "serviceMonitor.interval": MONITOR,
    "serviceMonitor.labels": MONITOR,
}
#: What decides about a chart that is not here: of ours it changes what is checked, and the notes.
ONLY_NOTES = {"components.airflow": "Chart.yaml's condition", "components.mlflow": "Chart.yaml's condition"}
#: Values that the two charts read, which are not here either.
THEIRS = ("airflow.", "mlflow.")


@pytest.mark.parametrize(("values", "words"), REFUSED.values(), ids=REFUSED)
def test_the_schema_refuses(values, words):
    with pytest.raises(helm_python.HelmValuesError) as refused:
        render(values)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(("values", "words"), CONFLICTS.values(), ids=CONFLICTS)
def test_the_chart_refuses(values, words):
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(values)
    for word in ("required:", "received:", "remedy:", *words):
        assert word in str(refused.value)


@pytest.mark.parametrize(("values", "words"), SECRETS.values(), ids=SECRETS)
def test_a_secret_is_refused_and_not_repeated(values, words):
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(values)
    for word in ("required:", "received:", "remedy:", *words):
        assert word in str(refused.value)
    assert SECRET not in str(refused.value)


MINIMAL = values_of("values-minimal.yaml")
_POSTGRES = "airflow.data.metadataConnection.pass"
#: Passwords that a chart comes with, and what is said of them.
KNOWN = {
    **{
        f"{job}_{password}": (
            {"airflow": {job: {"defaultUser": {"enabled": True, **given}}}},
            f"airflow.{job}.defaultUser",
        )
        for job in ("createUserJob", "webserver")
        for password, given in {"none": {}, "admin": {"password": "admin"}, "empty": {"password": ""}}.items()
    },
    "postgres_none": (MINIMAL, _POSTGRES),
    "postgres_known": (
        merged(
            MINIMAL,
            {"airflow": {"postgresql": {"auth": {"postgresPassword": "postgres"}}}},
            {"airflow": {"data": {"metadataConnection": {"pass": "postgres"}}}},
        ),
        _POSTGRES,
    ),
    "postgres_two": (
        merged(MINIMAL, TRIAL, {"airflow": {"data": {"metadataConnection": {"pass": SECRET}}}}),
        "two different ones",
    ),
}


@pytest.mark.parametrize(("values", "words"), KNOWN.values(), ids=KNOWN)
def test_a_password_that_a_chart_comes_with_is_refused(values, words):
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(values)
    for word in ("required:", "received:", "remedy:", words):
        assert word in str(refused.value)
    assert SECRET not in str(refused.value)


def test_passwords_of_ones_own_are_taken_and_none_is_given_by_itself():
    users = {job: {"defaultUser": {"enabled": True, "password": SECRET}} for job in ("createUserJob", "webserver")}
    for values in ({}, merged(MINIMAL, TRIAL), {"airflow": users}):
        assert objects(render(values))


def test_what_is_no_secret_is_not_refused():
    runner, data = deployed_runner(OPEN)
    assert runner.env == OPEN["runner"]["options"]["env"]
    assert data["TFMOT_OPS_TRACKING_URI"] == OPEN["tracking"]["uri"]


def test_each_value_is_described_and_each_description_has_a_value():
    schema, values = _documents()
    described = {path for path, node in _leaves(schema) if node.get("description")}
    assert {path for path, _ in _leaves(schema)} == described
    present = {path for path in described if _value(values, path) is not None}
    # What the trees of the two charts hold beyond that is theirs, and ours is listed.
    assert present == described
    assert set(_given(values, described)) <= described


@pytest.mark.parametrize("path", OTHERWISE)
def test_each_value_has_an_effect(path):
    beside, _ = NOT_ALONE.get(path, ({}, ""))
    before, after = (render(merged(beside, values)) for values in ({}, _nested(path, OTHERWISE[path])))
    if path in ONLY_NOTES:
        assert before != after
    else:
        assert objects(before) != objects(after)


def test_each_value_is_tried():
    ours = {path for path, _ in _leaves(_documents()[0]) if not path.startswith(THEIRS)}
    assert ours == OTHERWISE.keys()
    assert ours >= NOT_ALONE.keys() | ONLY_NOTES.keys()


def test_the_readme_lists_each_value(request):
    schema, values = _documents()
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for path, node in _leaves(schema):
        default = json.dumps(_value(values, path), ensure_ascii=False).replace("|", "\\|")
        rows.append(f"| `{path}` | `{default}` | {node['description']} |")
    head, begin, rest = (CHART / "README.md").read_text(encoding="utf-8").partition("<!-- values -->\n")
    _, end, tail = rest.partition("<!-- /values -->")
    text = head + begin + "\n".join(rows) + "\n" + end + tail
    if request.config.getoption("--regen"):
        (CHART / "README.md").write_text(text, encoding="utf-8")
    assert (CHART / "README.md").read_text(encoding="utf-8") == text, "run pytest tests/helm --regen and look at it"


def _nested(path, value):
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def _documents():
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    del schema["properties"]["global"]
    return schema, yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def _leaves(node, path=""):
    """(dotted path, schema) of each value that the schema does not take apart further."""
    for name, child in node["properties"].items():
        below = f"{path}.{name}" if path else name
        if "properties" in child:
            yield from _leaves(child, below)
        else:
            yield below, child


def _given(values, leaves, path=""):
    """Dotted paths of what values.yaml gives, down to the leaves."""
    for name, value in values.items():
        below = f"{path}.{name}" if path else name
        if below in leaves or not isinstance(value, dict):
            yield below
        else:
            yield from _given(value, leaves, below)


def _value(values, path):
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values
