"""Which runner a step gets: the operator's argument, then the DAG run's parameter, then the deployment, then local."""

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
#: Runners that can be asked for by name.
RUNNERS = tuple(_BY_NAME)
#: The deployment's runner, and a JSON object of its constructor's arguments.
RUNNER_VARIABLE = environment.RUNNER.name
OPTIONS_VARIABLE = environment.RUNNER_OPTIONS.name


def choose_runner(argument: Runner | str | Mapping[str, Any] | None = None, parameter: object = None) -> Runner:
    """The runner of a step, in one order: argument > parameter > environment > local.

    A runner that is named gets the arguments of TFMOT_OPS_RUNNER_OPTIONS if it is the deployment's own, and its
    defaults otherwise. A Runner object is taken as it is.

    Args:
        argument: of the operator: a Runner, the name of one, or arguments that differ from those it has otherwise
            (`{"image": "tfmot-ops:next-cpu"}`), with or without its name under `runner`.
        parameter: of the DAG run: the deployment's runner, or one that TFMOT_OPS_ALLOWED_RUNNERS names. Where the
            deployment has set neither variable, any runner.

    Raises:
        SpecError: no runner has this name, the options are not arguments of it, or the parameter is not allowed.
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
    # Named, so that a typing error in a deployment's values is told instead of ignored.
    strict = with_config(ConfigDict(extra="forbid"))(_BY_NAME[name])
    try:
        given = json.loads(options)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise SpecError(
            OPTIONS_VARIABLE,
            required="a JSON object",
            received=f"a text of {len(options)} characters that is none",
            remedy="correct the variable; {} takes the defaults",
        )
    try:
        runner: Runner = TypeAdapter(strict).validate_python({**given, **changed})
    except ValidationError as error:
        # From None, as Airflow logs causes too: this one holds values of the deployment, be they of its `env`.
        remedy = f"give arguments of the runner {name}, see its docstring"
        fields = [field.name for field in dataclasses.fields(_BY_NAME[name])]
        raise refusal(OPTIONS_VARIABLE, error, remedy, fields=fields) from None
    return runner
