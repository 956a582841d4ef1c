"""The chart, rendered, and values to render it with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.runners import Runner, choose_runner

CHART = Path(__file__).parents[2] / "helm" / "tfmot-ops"

#: A step; what it does is of no interest here.
SPEC = StepSpec.model_validate({"step_id": "step", "output_uri": "/tmp/out", "options": {"kind": "list"}})  # noqa: S108 - never written to
GPU_SPEC = SPEC.model_copy(update={"device": Device.GPU})
#: The glue alone: both dependencies off.
GLUE = {
    "components": {"airflow": False, "mlflow": False},
    "tracking": {"uri": "http://mlflow.example"},
    "networkPolicy": {"mlflow": {"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]}},
}
#: What values-minimal.yaml asks for beside it.
TRIAL = {
    "airflow": {
        "postgresql": {"auth": {"postgresPassword": "drawn by chance"}},
        "data": {"metadataConnection": {"pass": "drawn by chance"}},
    }
}


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Values over values, as `helm -f a -f b` does it."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            both = isinstance(value, dict) and isinstance(below, dict)
            result[key] = merged(below, value) if both else copy.deepcopy(value)
    return result


def values_of(*names: str) -> dict[str, Any]:
    """The values files of these names, over one another."""
    return merged(*(yaml.safe_load((CHART / name).read_text(encoding="utf-8")) for name in names))


def render(values: dict[str, Any], chart: Path = CHART) -> dict[str, str]:
    """Template name -> text. The chart is loaded afresh: rendering changes a loaded one."""
    with helm_python.Chart.load(chart) as loaded:
        return loaded.render(values, name="demo", namespace="tfmot-ops")


def objects(rendered: dict[str, str]) -> list[dict[str, Any]]:
    """The Kubernetes objects among the rendered texts."""
    texts = (text for name, text in sorted(rendered.items()) if not name.endswith("NOTES.txt"))
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def one(rendered: dict[str, str], kind: str, name: str) -> dict[str, Any]:
    """The only object of this kind and name."""
    (found,) = [o for o in objects(rendered) if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def deployed_runner(values: dict[str, Any]) -> tuple[Runner, dict[str, str]]:
    """The runner that Airflow's containers would choose, made from what the chart hands them; and that."""
    data = one(render(values), "ConfigMap", "tfmot-ops-defaults")["data"]
    with pytest.MonkeyPatch.context() as environment:
        for variable, text in data.items():
            environment.setenv(variable, text)
        return choose_runner(), data
