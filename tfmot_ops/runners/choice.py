"""Chooses a step's runner: the operator's argument, else the DAG run's parameter, else the deployment's, else local."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from tfmot_ops.contract.refusal import quoted, refusal
from tfmot_ops.errors import SpecError
from tfmot_ops.runners.base import Runner
from tfmot_ops.runners.docker import DockerRunner
from tfmot_ops.runners.kubernetes import KubernetesRunner
from tfmot_ops.runners.listed import check_parameter
from tfmot_ops.runners.local import LocalRunner
from tfmot_ops.system import environment

_BY_NAME: dict[str, type[Any]] = {"local": LocalRunner, "docker": DockerRunner, "kubernetes": KubernetesRunner}
#: The names of runners.
RUNNERS = tuple(_BY_NAME)
#: Environment variables with the deployment's runner, and with a JSON object of its constructor's arguments.
RUNNER_VARIABLE = environment.RUNNER.name
OPTIONS_VARIABLE = environment.RUNNER_OPTIONS.name


def choose_runner(argument: Runner | str | Mapping[str, Any] | None = None, parameter: object = None) -> Runner:
    """The runner of a step, by priority: argument > parameter > environment > local.

    The deployment's runner gets the arguments in TFMOT_OPS_RUNNER_OPTIONS; any other runner that is given by name gets
    its defaults. A Runner object is used unchanged.

    Args:
        argument: argument of the operator: a Runner, a runner's name, or a mapping with some of a runner's arguments
            (`{"image": "tfmot-ops:next-cpu"}`) and optionally its name under the key `runner`.
        parameter: parameter of the DAG run: the name of the deployment's runner or of a runner in
            TFMOT_OPS_ALLOWED_RUNNERS. If the deployment sets neither variable, any runner is allowed.

    Raises:
        SpecError: no runner has this name, an option is not an argument of the runner, or the parameter is not allowed.
    """
    changed: dict[str, Any] = {}
    if isinstance(argument, Mapping):
        changed = {name: value for name, value in argument.items() if name != "runner"}
        argument = argument.get("runner")
    elif argument is not None and not isinstance(argument, str):
        return argument
    chosen = environment.RUNNER.get()
    if parameter and not argument:
        check_parameter(parameter, chosen)
    deployed = environment.runner()
    name = argument or parameter or deployed
    if not isinstance(name, str) or name not in _BY_NAME:
        raise SpecError(
            f"no runner has the name {quoted(name)}",
            required=" or ".join(RUNNERS),
            received=name if isinstance(name, str) else quoted(name),
            remedy=f"pass one of these names or a Runner object, or correct {RUNNER_VARIABLE}",
        )
    options = environment.RUNNER_OPTIONS.get() or "{}"
    return _make(name, options if name == deployed else "{}", changed)


def _make(name: str, options: str, changed: Mapping[str, Any]) -> Runner:
    # With extra="forbid", so that a misspelled argument in a deployment's values is an error and not ignored.
    strict = with_config(ConfigDict(extra="forbid"))(_BY_NAME[name])
    try:
        given = json.loads(options)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise SpecError(
            OPTIONS_VARIABLE,
            required="a JSON object",
            received=f"a text of {len(options)} characters that is not a JSON object",
            remedy="correct the variable; {} takes the defaults",
        )
    try:
        runner: Runner = TypeAdapter(strict).validate_python({**given, **changed})
    except ValidationError as error:
        # `from None`, as Airflow logs causes too, and this cause holds the deployment's values, `env` included.
        remedy = f"give arguments of the runner {name}, see its docstring"
        fields = [field.name for field in dataclasses.fields(_BY_NAME[name])]
        raise refusal(OPTIONS_VARIABLE, error, remedy, fields=fields) from None
    return runner
