"""Which runner a step gets, and what of a deployment's options is refused."""

import pytest

from tfmot_ops.contract import Device
from tfmot_ops.errors import SpecError
from tfmot_ops.runners import (
    OPTIONS_VARIABLE,
    RUNNER_VARIABLE,
    DockerRunner,
    FakeRunner,
    KubernetesRunner,
    LocalRunner,
    choose_runner,
)

pytestmark = pytest.mark.airflow


@pytest.fixture(autouse=True)
def deployment(monkeypatch):
    """Sets the two variables; none of them at first."""
    monkeypatch.delenv(RUNNER_VARIABLE, raising=False)
    monkeypatch.delenv(OPTIONS_VARIABLE, raising=False)

    def deploy(name, options="{}"):
        monkeypatch.setenv(RUNNER_VARIABLE, name)
        monkeypatch.setenv(OPTIONS_VARIABLE, options)

    return deploy


def test_the_order_is_argument_parameter_deployment_local(deployment):
    assert choose_runner() == LocalRunner()
    deployment("kubernetes")
    assert choose_runner() == KubernetesRunner()
    assert choose_runner(None, "docker") == DockerRunner()
    assert choose_runner("local", "docker") == LocalRunner()
    fake = FakeRunner()
    assert choose_runner(fake, "docker") is fake


def test_options_are_of_the_deployments_runner_only(deployment):
    deployment("docker", '{"image": "mine:1", "device": "gpu", "mounts": [{"target": "/d", "source": "v"}]}')
    chosen = choose_runner()
    assert chosen == DockerRunner(image="mine:1", device=Device.GPU, mounts=[{"target": "/d", "source": "v"}])
    assert choose_runner("docker") == chosen
    assert choose_runner("kubernetes") == KubernetesRunner()


def test_arguments_change_what_the_runner_has_otherwise(deployment):
    deployment("docker", '{"image": "mine:1", "memory": "2g"}')
    assert choose_runner({"image": "next:1"}) == DockerRunner(image="next:1", memory="2g")
    assert choose_runner({"image": "next:1"}, "kubernetes") == KubernetesRunner(image="next:1")
    assert choose_runner({"runner": "kubernetes", "image": "next:1"}, "docker") == KubernetesRunner(image="next:1")
    with pytest.raises(SpecError, match="field imge"):
        choose_runner({"imge": "next:1"})


@pytest.mark.parametrize(
    ("name", "options", "finding"),
    [
        pytest.param("podman", "{}", "received: podman", id="name"),
        pytest.param("docker", '{"imge": "x"}', "field imge", id="unknown"),
        pytest.param("kubernetes", '{"schedule_timeout_s": "soon"}', "field schedule_timeout_s", id="type"),
        pytest.param("kubernetes", '{"fallback": "tpu"}', "field fallback", id="enum"),
        pytest.param("docker", "image=x", "required: a JSON object", id="no-json"),
    ],
)
def test_what_is_wrong_is_named(deployment, name, options, finding):
    deployment(name, options)
    with pytest.raises(SpecError, match=finding):
        choose_runner()
