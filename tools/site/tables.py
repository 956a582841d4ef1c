"""Tables of the reference that are made from classes: error codes, operators, runners."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

from tfmot_ops import errors, operators, runners
from tfmot_ops.contract import Options, StepOptions
from tfmot_ops.errors import TfmotOpsError
from tfmot_ops.sweep.run.error_classes import ERROR_CLASSES
from tools.site.markdown import code, entries, prose, sentence, table


def error_codes() -> str:
    """Each error class with its code."""
    rows = (
        [code(kind.code), code(kind.__name__), str(kind.exit_code), prose(kind).partition("\n")[0]]
        for kind in sorted(_errors(TfmotOpsError), key=lambda kind: kind.code)
    )
    return table(("code", "class in `tfmot_ops.errors`", "exit code", "meaning"), rows)


def _errors(base: type[TfmotOpsError]) -> Iterator[type[TfmotOpsError]]:
    if base.__module__ == errors.__name__:
        yield base
    for kind in base.__subclasses__():
        yield from _errors(kind)


def sweep_errors() -> str:
    """Each error class of a failed cell."""
    rows = ([code(kind.name), kind.cause, kind.remedy] for kind in ERROR_CLASSES)
    return table(("error class", "cause", "remedy"), rows)


def operators_by_kind() -> dict[str, type]:
    """Kind of step -> its operator."""
    found = (getattr(operators, name) for name in operators.__all__)
    return {kind.kind: kind for kind in found if isinstance(kind, type) and getattr(kind, "kind", None)}


def operators_table() -> str:
    """Each operator with the inputs, outputs and options of its kind of step."""
    by_kind = {kind.model_fields["kind"].default: kind for kind in _kinds(Options)}
    rows = (
        [
            code(operator.__name__),
            code(kind),
            ", ".join(map(code, by_kind[kind].requires)),
            ", ".join(map(code, by_kind[kind].makes)),
            ", ".join(code(name) + ("*" if field.is_required() else "") for name, field in _fields(by_kind[kind])),
        ]
        for kind, operator in operators_by_kind().items()
    )
    titles = ("operator", "kind of step", "required inputs", "outputs", "options (* required)")
    return table(titles, rows)


def _kinds(union: Any) -> Iterator[type[StepOptions]]:
    for each in get_args(union):
        if isinstance(each, type) and issubclass(each, StepOptions):
            yield each
        else:
            yield from _kinds(each)


def _fields(kind: type[StepOptions]) -> list[tuple[str, Any]]:
    return [(name, field) for name, field in kind.model_fields.items() if name != "kind"]


def runner_arguments() -> str:
    """A section for each runner with its arguments."""
    kinds = (runners.LocalRunner, runners.DockerRunner, runners.KubernetesRunner)
    return "\n".join(_runner(kind) for kind in kinds)


def _runner(kind: type) -> str:
    meanings = entries(kind)
    rows = []
    for field in dataclasses.fields(kind):
        given = field.default not in (dataclasses.MISSING, None, (), "")
        rows.append([code(field.name), code(field.default) if given else "", sentence(meanings.get(field.name, ""))])
    return "\n".join([f"## {kind.__name__}\n", prose(kind) + "\n", table(("argument", "default", "meaning"), rows)])
