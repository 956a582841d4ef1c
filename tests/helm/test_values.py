"""The values: what is refused, in which words, and the README's table of them."""

from __future__ import annotations

import json

import helm_python
import pytest
import yaml
from rendering import CHART, GLUE, merged, render

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
    "secret_value": ({"runner": {"secrets": [{"AWS_SECRET": "x"}]}}, ["/runner/secrets/0", "got object, want string"]),
}
#: What compares two values, so that a schema cannot say it: required, received, remedy.
CONFLICTS = {
    "tracking": (merged(GLUE, {"tracking": {"uri": ""}}), ["tracking.uri", "received: nothing"]),
    "policy": (merged(GLUE, {"networkPolicy": {"mlflow": {"to": []}}}), ["networkPolicy.mlflow.to", "everywhere"]),
    "launcher": ({"launcher": {"serviceAccount": {"name": "me"}}}, ["launcher.serviceAccount.name, me", "change both"]),
    "two_pods": ({"airflow": {"executor": "KubernetesExecutor"}}, ["airflow.allowPodLaunching=true", "false"]),
    "namespace": ({"jobs": {"namespace": "tfmot-ops"}}, ["jobs.namespace apart", "received: tfmot-ops"]),
}


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


def test_each_value_is_described_and_each_description_has_a_value():
    schema, values = _documents()
    described = {path for path, node in _leaves(schema) if node.get("description")}
    assert {path for path, _ in _leaves(schema)} == described
    present = {path for path in described if _value(values, path) is not None}
    # What the trees of the two charts hold beyond that is theirs, and ours is listed.
    assert present == described
    assert set(_given(values, described)) <= described


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
