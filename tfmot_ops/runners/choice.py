"""Which runner a step gets: the operator's argument, then the DAG run's parameter, then the deployment, then local."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from tfmot_ops.errors import SpecError
from tfmot_ops.refusal import refusal
from tfmot_ops.runners.base import Runner
from tfmot_ops.runners.docker import DockerRunner
from tfmot_ops.runners.kubernetes import KubernetesRunner
from tfmot_ops.runners.local import LocalRunner

_BY_NAME: dict[str, type[Any]] = {"local": LocalRunner, "docker": DockerRunner, "kubernetes": KubernetesRunner}
#: Runners that can be asked for by name.
RUNNERS = tuple(_BY_NAME)
#: The deployment's runner, and a JSON object of its constructor's arguments.
RUNNER_VARIABLE = "TFMOT_OPS_RUNNER"
OPTIONS_VARIABLE = "TFMOT_OPS_RUNNER_OPTIONS"


def choose_runner(argument: Runner | str | Mapping[str, Any] | None = None, parameter: str | None = None) -> Runner:
    """The runner of a step, in one order: argument > parameter > environment > local.

    A runner that is named gets the arguments of TFMOT_OPS_RUNNER_OPTIONS if it is the deployment's own, and its
    defaults otherwise. A Runner object is taken as it is.

    Args:
        argument: of the operator: a Runner, the name of one, or arguments that differ from those it has otherwise
            (`{"image": "tfmot-ops:next-cpu"}`), with or without its name under `runner`.
        parameter: of the DAG run.

    Raises:
        SpecError: no runner has this name, or the options are not arguments of it.
    """
    changed: dict[str, Any] = {}
    if isinstance(argument, Mapping):
        changed = {name: value for name, value in argument.items() if name != "runner"}
        argument = argument.get("runner")
    elif argument is not None and not isinstance(argument, str):
        return argument
    deployed = os.environ.get(RUNNER_VARIABLE) or "local"
    name = argument or parameter or deployed
    if name not in _BY_NAME:
        raise SpecError(
            f"no runner has the name {name!r}",
            required=" or ".join(RUNNERS),
            received=name,
            remedy=f"pass one of these names or a Runner object, or correct {RUNNER_VARIABLE}",
        )
    options = os.environ.get(OPTIONS_VARIABLE) or "{}"
    return _make(name, options if name == deployed else "{}", changed)


def _make(name: str, options: str, changed: Mapping[str, Any]) -> Runner:
    # Named, so that a typing error in a deployment's values is told instead of ignored.
    strict = with_config(ConfigDict(extra="forbid"))(_BY_NAME[name])
    try:
        runner: Runner = TypeAdapter(strict).validate_python(json.loads(options) | changed)
    except json.JSONDecodeError as error:
        raise SpecError(
            OPTIONS_VARIABLE, required="a JSON object", received=options, remedy=f"write {{}} for defaults ({error})"
        ) from error
    except ValidationError as error:
        raise refusal(OPTIONS_VARIABLE, error, f"give arguments of the runner {name}, see its docstring") from error
    return runner
