"""The reference of the command `tfmot-ops`, from the signatures that typer reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from typer import Typer
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from tfmot_ops.cli.app import app
from tools.site.markdown import code, sentence, table

_METAVARS: Final = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command.

    Attributes:
        shown: as a user writes it: `--recipe TEXT`, `PYTHON`.
        names: of an option: all its spellings; none for an argument.
        info: typer's description.
        choices: words that it takes; none for any text.
        default: value without it; `inspect.Parameter.empty` for a required one.
    """

    shown: str
    names: tuple[str, ...]
    info: ParameterInfo
    choices: tuple[str, ...]
    default: Any

    @property
    def row(self) -> list[str]:
        """The cells of its line in a table."""
        words = [sentence(self.info.help or "")]
        words += [f"One of {', '.join(map(code, self.choices))}."] if self.choices else []
        variables = [self.info.envvar] if isinstance(self.info.envvar, str) else self.info.envvar or []
        words += [f"If not given: {', '.join(map(code, variables))} of the environment."] if variables else []
        return [code(self.shown), self._default, " ".join(words)]

    @property
    def _default(self) -> str:
        if self.default is inspect.Parameter.empty:
            return "required"
        if isinstance(self.info.show_default, str):
            return self.info.show_default
        value = self.default.value if isinstance(self.default, Enum) else self.default
        return "" if value is None or value == "" or value is False else code(value)


def all_commands() -> str:
    """A section for each command, those of groups included."""
    return "\n".join(_section(path, info) for path, info in commands().items())


def commands() -> dict[str, Any]:
    """Words after `tfmot-ops` -> typer's description of the command, in the order of the help text."""
    return dict(_commands(app, ""))


def _commands(typer: Typer, path: str) -> Iterator[tuple[str, Any]]:
    for info in typer.registered_commands:
        yield f"{path}{info.name or info.callback.__name__.replace('_', '-')}", info
    for group in typer.registered_groups:
        yield from _commands(group.typer_instance, f"{path}{group.name} ")


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """The arguments and options of a command's function."""
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *more = get_args(hints[name])
        info = next(each for each in more if isinstance(each, ParameterInfo))
        found.append(_parameter(name, kind, info, parameter.default))
    return found


def _parameter(name: str, kind: Any, info: ParameterInfo, default: Any) -> Parameter:
    plain = next((each for each in get_args(kind) if each is not type(None)), kind) if _is_union(kind) else kind
    choices = _choices(plain)
    value = info.metavar or ("TEXT" if choices else _METAVARS.get(plain, "TEXT"))
    if isinstance(info, ArgumentInfo):
        shown = info.metavar or name.upper()
        return Parameter(shown if default is inspect.Parameter.empty else f"[{shown}]", (), info, choices, default)
    # Within Annotated, the first name takes the place of typer's argument `default`.
    given = [info.default] if isinstance(info.default, str) else []
    names = (*given, *(getattr(info, "param_decls", None) or ())) or (f"--{name.replace('_', '-')}",)
    return Parameter(", ".join(names) + ("" if plain is bool else f" {value}"), names, info, choices, default)


def _is_union(kind: Any) -> bool:
    return type(None) in get_args(kind)


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    return tuple(str(each.value) for each in kind) if isinstance(kind, type) and issubclass(kind, Enum) else ()


def _section(path: str, info: Any) -> str:
    found = parameters(info.callback)
    arguments = [each for each in found if not isinstance(each.info, OptionInfo)]
    options = [each for each in found if isinstance(each.info, OptionInfo)]
    usage = " ".join(["tfmot-ops", path, *(["[OPTIONS]"] if options else []), *(each.shown for each in arguments)])
    parts = [
        f"## tfmot-ops {path}\n",
        f"```text\n{usage}\n```\n",
        inspect.cleandoc(info.help or info.callback.__doc__) + "\n",
    ]
    for title, rows in (("argument", arguments), ("option", options)):
        if rows:
            parts.append(table((title, "default", "meaning"), (each.row for each in rows)))
    return "\n".join([*parts, *([f"{info.epilog}\n"] if info.epilog else [])])
