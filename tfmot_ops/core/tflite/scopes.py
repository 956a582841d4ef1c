"""Name scopes: the beginnings of tensor names in a TFLite file, by which a tensor is traced to its layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain, count

from tfmot_ops.core.graph.ir import Graph, Node, scope_safe_name
from tfmot_ops.core.keras.wrapped import inner_layer


def scopes_of(names: Iterable[str]) -> dict[str, str]:
    """Layer name -> its scope (`L.conv/`), with which the names of its operations' results begin.

    TensorFlow allows fewer characters in a scope than Keras in a name, and takes names that differ only in case for
    equal. Scopes that would be equal get numbers, which do not depend on the order of the names.

    Args:
        names: names of all layers of a graph.
    """
    scopes: dict[str, str] = {}
    used: set[str] = set()
    # Names that can stay as they are go first, so that `my_conv` keeps its name beside `my.conv#`.
    for name in sorted(set(names), key=lambda name: (scope_safe_name(name) != name, name)):
        numbered = (f"{scope_safe_name(name)}-{number}" for number in count(2))
        scope = next(scope for scope in chain([scope_safe_name(name)], numbered) if scope.lower() not in used)
        used.add(scope.lower())
        scopes[name] = f"L.{scope}/"
    return scopes


def is_within(tensor: str, scope: str) -> bool:
    """Whether a tensor's name, or one of several that the converter joined by `;`, is in a layer's scope."""
    return f"/{scope}" in "/" + tensor.replace(";", "/")


def layers_of(tensor: str) -> list[str]:
    """Names of the layers in a tensor's name, which the converter may have joined by `;`; none for another tensor."""
    parts = [name.removeprefix("L.").partition("/")[0] for name in tensor.split(";") if name.startswith("L.")]
    return list(dict.fromkeys(parts))


def call_scopes(graph: Graph) -> dict[Node, str]:
    """Call -> its scope; a further call of a shared layer has one within the layer's scope (`L.conv/call_2/`)."""
    scopes = scopes_of(inner_layer(node.layer).name for node in graph.nodes)
    seen: Counter[str] = Counter()
    found = {}
    for node in graph.nodes:
        scope = scopes[inner_layer(node.layer).name]
        seen[scope] += 1
        found[node] = scope if seen[scope] == 1 else f"{scope}call_{seen[scope]}/"
    return found
