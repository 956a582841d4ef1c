"""Runners: run a step in a process, a container or a pod. Importing this loads no TensorFlow, MLflow or provider."""

from tfmot_ops.runners.allowed_paths import check_places
from tfmot_ops.runners.base import (
    FakeRunner,
    Log,
    ResumableRunner,
    Runner,
    RunningStep,
    fake_result,
    judge,
    read_result,
)
from tfmot_ops.runners.choice import OPTIONS_VARIABLE, RUNNER_VARIABLE, RUNNERS, choose_runner
from tfmot_ops.runners.docker import DockerRunner
from tfmot_ops.runners.kubernetes import KubernetesRunner
from tfmot_ops.runners.listed import ALLOWED_RUNNERS_VARIABLE, IMAGES_VARIABLE, PYTHONS_VARIABLE, listed, look_up
from tfmot_ops.runners.local import LocalRunner, LocalStep

__all__ = [
    "ALLOWED_RUNNERS_VARIABLE",
    "IMAGES_VARIABLE",
    "OPTIONS_VARIABLE",
    "PYTHONS_VARIABLE",
    "RUNNERS",
    "RUNNER_VARIABLE",
    "DockerRunner",
    "FakeRunner",
    "KubernetesRunner",
    "LocalRunner",
    "LocalStep",
    "Log",
    "ResumableRunner",
    "Runner",
    "RunningStep",
    "check_places",
    "choose_runner",
    "fake_result",
    "judge",
    "listed",
    "look_up",
    "read_result",
]
