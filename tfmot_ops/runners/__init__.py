"""Where a step runs. Importing this loads no TensorFlow and no MLflow."""

from tfmot_ops.errors import SpecError
from tfmot_ops.runners.base import FakeRunner, Log, Runner, RunningStep, fake_result, read_result
from tfmot_ops.runners.local import LocalRunner, LocalStep

#: Runners that can be asked for by name.
RUNNERS = ("local",)


def make_runner(name: str) -> Runner:
    """A runner with its defaults.

    Raises:
        SpecError: no runner has this name.
    """
    if name == "local":
        return LocalRunner()
    raise SpecError(
        f"no runner has the name {name!r}",
        required=" or ".join(RUNNERS),
        received=name,
        remedy="pass one of these names or a Runner object; docker and kubernetes are not part of this version yet",
    )


__all__ = [
    "RUNNERS",
    "FakeRunner",
    "LocalRunner",
    "LocalStep",
    "Log",
    "Runner",
    "RunningStep",
    "fake_result",
    "make_runner",
    "read_result",
]
