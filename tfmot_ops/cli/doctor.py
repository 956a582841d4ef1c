"""The checks of `tfmot-ops doctor`: whether a step can run on this machine, and if not, what is missing."""

from __future__ import annotations

import json
import os
import platform
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tfmot_ops.contract import Device
from tfmot_ops.contract.document import Document
from tfmot_ops.errors import StepFailedError, TfmotOpsError
from tfmot_ops.system import versions
from tfmot_ops.system.uri_secrets import address, hide

#: Seconds that a tracking server may take to answer. MLflow's client would retry for minutes; a health check must not.
TIMEOUT_S = 10.0


#: The environment variable that turns oneDNN off.
_SWITCH = "TF_ENABLE_ONEDNN_OPTS"
#: Seconds that the trial may take; loading TensorFlow takes some five.
_TRIAL_S = 120.0
#: Gradient of a 1x1 convolution with stride 2 and 8 channels, the operation that ends the process on some CPUs.
_STRIDED_TRAINING = """
import tensorflow as tf
x, kernel = tf.random.normal([32, 60, 60, 8]), tf.Variable(tf.random.normal([1, 1, 8, 16]))
for _ in range(20):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 2, "SAME") ** 2)
    tape.gradient(loss, kernel)
"""


class Finding(Document):
    """The result of one check.

    Attributes:
        name: what was checked (`keras`, `devices`, ...).
        ok: whether a step can run with what was found.
        value: what was found.
        remedy: what to do; empty when `ok` is true.
    """

    name: str
    ok: bool
    value: str
    remedy: str = ""


def examine(device: Device, tracking_uri: str | None) -> list[Finding]:
    """Check everything that a step needs. Never raises: an exception in a check becomes a failed finding.

    Args:
        device: device that the steps will use.
        tracking_uri: MLflow tracking URI; None means no tracking, which is a finding with `ok`.
    """
    # Name -> (check, remedy for an exception that the check does not handle itself).
    looks: dict[str, tuple[Callable[[], str], str]] = {
        "versions": (_versions, "install tfmot-ops[worker]"),
        "keras": (_keras, "install tfmot-ops[worker], which has the versions of TensorFlow and tf-keras that fit"),
        "devices": (lambda: _devices(device), "see that `python -c 'import tensorflow'` works here"),
        "onednn": (_onednn, "see that `python -c 'import tensorflow'` works here"),
        "scratch": (_scratch, "let TMPDIR name a folder that can be written; in a container, --tmpfs /tmp"),
        "tracking": (lambda: _tracking(tracking_uri), "correct the tracking URI, as in http://127.0.0.1:5000"),
    }
    return [_look(name, look, remedy) for name, (look, remedy) in looks.items()]


def as_json(findings: list[Finding]) -> str:
    """The findings as one JSON object."""
    document = {"ok": all(f.ok for f in findings), "findings": [f.model_dump(mode="json") for f in findings]}
    return json.dumps(document, indent=2)


def as_lines(findings: list[Finding]) -> list[str]:
    """The findings as lines of text; the remedy follows on the line below a failed finding."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name:<{width}}  {finding.value}")
        lines += [f"     {'':<{width}}  remedy: {finding.remedy}"] if finding.remedy else []
    return lines


def _look(name: str, look: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(name=name, ok=True, value=look())
    except TfmotOpsError as error:
        value = error.summary + (f": {error.received}" if error.received else "")
        return Finding(name=name, ok=False, value=value, remedy=error.remedy)
    except Exception as error:  # noqa: BLE001 - what a broken installation raises is what is looked for
        return Finding(name=name, ok=False, value=hide(f"{type(error).__name__}: {error}"), remedy=remedy)


def _versions() -> str:
    return ", ".join([f"python {platform.python_version()}", *(f"{n} {v}" for n, v in versions.installed().items())])


def _keras() -> str:
    from tfmot_ops.core.keras.pinned import keras

    return f"tf.keras is tf_keras {keras.__version__}"


def _devices(device: Device) -> str:
    import tensorflow as tf

    from tfmot_ops.core.keras import pinned as legacy_keras  # noqa: F401 - the pin has to come before the first use of TensorFlow

    found = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices()]
    if device is Device.GPU and not any(name.startswith("GPU") for name in found):
        raise StepFailedError(
            "no GPU",
            required="a GPU that TensorFlow sees",
            received=", ".join(found),
            remedy="use the GPU image on a node with an NVIDIA driver and the container toolkit",
        )
    return ", ".join(found)


def _onednn() -> str:
    """Whether oneDNN trains the operation that corrupts memory on some CPUs; tried in a process of its own."""
    import subprocess
    import sys

    if os.environ.get(_SWITCH) == "0":
        return f"off, by {_SWITCH}=0"
    command = [sys.executable, "-c", _STRIDED_TRAINING]
    tried = subprocess.run(command, capture_output=True, check=False, text=True, timeout=_TRIAL_S)
    if tried.returncode > 0:
        raise StepFailedError(
            "TensorFlow cannot train a convolution",
            required="exit code 0",
            received=(tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1],
            remedy="see that `python -c 'import tensorflow'` works here",
        )
    if tried.returncode == 0:
        return "trains the strided 1x1 convolution that fails on some CPUs"
    name = signal.Signals(-tried.returncode).name
    return f"fails ({name}) in plain TensorFlow's strided 1x1 convolution; steps of tfmot-ops compute it another way"


def _scratch() -> str:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        return f"{Path(file.name).parent} can be written, as uid {os.getuid()}"


def _tracking(uri: str | None) -> str:
    if not uri:
        return "none given, so nothing is recorded"
    if not uri.startswith(("http://", "https://")):
        return f"{uri.partition(':')[0]} store, opened by the step itself"
    # Not through MLflow's client, which retries for minutes. The address is shown without user and password.
    shown = address(uri)
    try:
        with urllib.request.urlopen(f"{shown}/health", timeout=TIMEOUT_S) as answer:  # noqa: S310 - http only
            return f"{shown} answers {answer.status}"
    except (urllib.error.URLError, OSError) as error:
        raise StepFailedError(
            f"{shown} does not answer",
            required=f"HTTP 200 from /health within {TIMEOUT_S:.0f} s",
            received=hide(str(getattr(error, "reason", error)), uri),
            remedy="start the server, correct the address, or let the step reach it (network, --allowed-hosts)",
        ) from error
