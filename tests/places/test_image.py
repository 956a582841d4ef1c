"""The image as it is built from the real Dockerfile, run with a read-only root, no capabilities and no network."""

import json
import os
import re
import time

import pytest

from tfmot_ops.contract import StepSpec
from tfmot_ops.runners import DockerRunner

pytestmark = pytest.mark.timeout(1800)

LIMIT_BYTES = 2_000_000_000
DATA = {"dataset": "digits", "limit": 200}
RECIPE = {"recipe": "sparse50_wi8_ai8"}
#: Step -> its options and, by name, the steps its inputs come from, with `:<output>` where that has another name.
CHAIN = {
    "train": ({"model": "resnet8", "epochs": 1, **DATA}, {}),
    "prune": ({"epochs": 1, **RECIPE, **DATA}, {"model": "train"}),
    "fine_tune": ({"epochs": 1, **RECIPE, **DATA}, {"model": "prune"}),
    "strip": ({**RECIPE, **DATA}, {"model": "fine_tune"}),
    "quantize": ({"epochs": 0, **RECIPE, **DATA}, {"model": "strip"}),
    "evaluate": ({**RECIPE, **DATA}, {"tflite": "quantize", "model": "strip", "trained": "train:model"}),
}
HARDENED = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "network_mode": "none",
    "tmpfs": {"/tmp": "rw,mode=1777,size=2g"},  # noqa: S108 - the container's own
}


@pytest.fixture
def volume(engine):
    """A volume for the artifacts, gone in the end."""
    volume = engine.volumes.create()
    yield volume.name
    volume.remove(force=True)


@pytest.fixture
def run(engine, image):
    """Run a command in the hardened image to its end: (exit code, output)."""

    def run(command, **more):
        container = engine.containers.create(image, command, **HARDENED, **more)
        try:
            container.start()
            code = container.wait(timeout=900)["StatusCode"]
            return code, container.logs().decode()
        finally:
            container.remove(force=True, v=True)

    return run


def test_size_user_labels(engine, image):
    found = engine.images.get(image)
    assert found.attrs["Size"] <= LIMIT_BYTES, f"{found.attrs['Size'] / 1e9:.2f} GB"
    assert found.attrs["Config"]["User"] == "10001:10001"
    assert found.labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    # A commit, but not always the last: podman 4.3 takes the label of another commit from its cache.
    revision = found.labels["org.opencontainers.image.revision"]
    assert os.environ.get("TFMOT_OPS_IMAGE") or re.fullmatch("[0-9a-f]{40}", revision)


def test_one_tensorflow_and_a_place_that_is_fit(run):
    code, output = run(["doctor", "--json"])
    assert code == 0, output
    versions = next(f["value"] for f in json.loads(output[output.index("{") :])["findings"] if f["name"] == "versions")
    assert "tensorflow-cpu 2.21.0" in versions
    assert "tensorflow 2" not in versions


def test_the_chain_step_by_step(volume, image, containers):
    runner = DockerRunner(image=image, network="none", mounts=[{"target": "/data", "source": volume, "type": "volume"}])
    made = {}
    for step, (options, sources) in CHAIN.items():
        named = {name: source.partition(":")[::2] for name, source in sources.items()}
        inputs = {name: made[source].outputs[output or name] for name, (source, output) in named.items()}
        document = {"step_id": step, "inputs": inputs, "output_uri": f"/data/{step}"}
        spec = StepSpec.model_validate({**document, "options": {"kind": step, **options}})
        made[step] = runner.start(spec, None, print).wait()
    assert made["strip"].metrics["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert made["evaluate"].metrics["int8_mac_fraction"] == 1.0
    assert made["evaluate"].metrics["float_accuracy"] == made["train"].metrics["accuracy"]
    assert containers() == []


def test_a_sweep_of_two_architectures(run):
    asked = ["--architectures", "MobileNet,MobileNetV3Small", "--recipes", "sparse50_wi8_ai8"]
    code, output = run(["sweep", *asked, "--folder", "/tmp/cells", "--report", "/tmp/report"])  # noqa: S108 - the container's own
    assert code == 0, output
    assert "2 of 2 cells passed, nothing got worse" in output


def test_a_signal_ends_it_at_once(engine, image):
    command = ["--", "python", "-c", "import time; print('up', flush=True); time.sleep(600)"]
    container = engine.containers.run(image, command, entrypoint=["tini", "-g"], detach=True, **HARDENED)
    try:
        deadline = time.monotonic() + 60
        while b"up" not in container.logs():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        began = time.monotonic()
        container.stop(timeout=30)
        assert time.monotonic() - began < 10
    finally:
        container.remove(force=True, v=True)
