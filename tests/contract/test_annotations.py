"""Parameters say what they take: few annotations in `tfmot_ops` contain `Any`. Only the text of the files is read."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

#: Of a hundred parameters of the functions in `tfmot_ops`, as many at most have `Any` in their annotation.
LIMIT_PERCENT = 10.0
PACKAGE = Path(__file__).resolve().parents[2] / "tfmot_ops"


def parameters(tree: ast.AST) -> list[ast.arg]:
    """All parameters of all functions and methods, `self` and `cls` left out, as nobody annotates them."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            found += [each for each in (*named, given.vararg, given.kwarg) if each is not None]
    return [each for each in found if each.annotation is not None or each.arg not in {"self", "cls"}]


def says_any(parameter: ast.arg) -> bool:
    """Whether the name `Any` stands anywhere in the annotation, also within `dict[str, Any]` or `typing.Any`."""
    within = [] if parameter.annotation is None else list(ast.walk(parameter.annotation))
    return "Any" in {getattr(part, "id", getattr(part, "attr", "")) for part in within}


def test_what_counts_as_any():
    source = "class A:\n def f(self, a: int, b: Any, *c: dict[str, Any], d: typing.Any = 1, **e: 'str') -> Any: ..."
    found = parameters(ast.parse(source))
    assert [each.arg for each in found] == ["a", "b", "d", "c", "e"]
    assert [each.arg for each in found if says_any(each)] == ["b", "d", "c"]


def test_few_parameters_are_annotated_with_any():
    total, by_file = 0, Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        found = parameters(ast.parse(path.read_text(encoding="utf-8")))
        total += len(found)
        by_file[str(path.relative_to(PACKAGE.parent))] += sum(map(says_any, found))
    count = by_file.total()
    most = "\n".join(f"  {number:3} {name}" for name, number in by_file.most_common(10))
    assert 100 * count / total <= LIMIT_PERCENT, (
        f"{count} of {total} parameters have `Any` in their annotation: {100 * count / total:.1f} %, "
        f"and {LIMIT_PERCENT:g} % may. Say what they take; tfmot_ops/core/keras/types.py has names for the objects of "
        f"Keras. The files with the most:\n{most}"
    )
