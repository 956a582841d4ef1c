"""Finds the smallest part of a layer graph that still fails, by delta debugging. Loads no TensorFlow.

The search bisects the end of the part first, then its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

#: Used instead of a call's index for the model's input.
INPUT = -1


@dataclass(frozen=True)
class Call:
    """One call of a layer in a model's graph.

    Attributes:
        layer: the layer's name in the model.
        kind: the layer's class, followed by the function of a layer that wraps one (`TFOpLambda:nn.relu6`).
        inputs: indices of the calls whose outputs it reads; `INPUT` for the model's input.
        node: index of this call among the layer's calls (Keras' node index).
        shape: shape of one sample of its output; None if it has several outputs or an unknown size.
        entry: for a nested model, the shape of one sample of its input; None for other layers, and for several inputs
            or an unknown size.
    """

    layer: str
    kind: str
    inputs: tuple[int, ...]
    node: int = 0
    shape: tuple[int, ...] | None = None
    entry: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Part:
    """The calls after `first`, up to and including `last`; with `first` = `INPUT` from the model's input."""

    first: int
    last: int


def members(calls: Sequence[Call], part: Part) -> list[int]:
    """Indices of the calls in a part, in topological order."""
    found: set[int] = set()
    waiting = [part.last]
    while waiting:
        index = waiting.pop()
        if index not in found and index not in {part.first, INPUT}:
            found.add(index)
            waiting += calls[index].inputs
    return sorted(found)


def dominators(calls: Sequence[Call], within: Iterable[int]) -> list[int]:
    """The calls on every path from a part's input to its end, including the end (the dominators of the end)."""
    order = sorted(within)
    inside = set(order)
    # Call -> the last position at which it is read; the input of the part counts as one call.
    read_at = {source: at for at, index in enumerate(order) for source in _sources(calls[index], inside)}
    found: list[int] = []
    reach = read_at.get(INPUT, 0)
    for at, index in enumerate(order):
        if reach <= at:
            found.append(index)
        reach = max(reach, read_at.get(index, at))
    return found


def smallest(calls: Sequence[Call], fails: Callable[[Part], bool]) -> Part:
    """A smallest failing part, found by bisection and then by single steps (delta debugging).

    Args:
        calls: calls of the model in topological order; the whole model is known to fail.
        fails: whether a part fails in the same way as the whole model.

    Returns:
        A part for which `fails` was true, or the whole model. The part passes without its last call, and with any
        later beginning that is a single tensor.
    """
    last = _shortest_end(calls, fails)
    whole = Part(INPUT, last)
    begins = [index for index in dominators(calls, members(calls, whole))[:-1] if calls[index].shape is not None]
    # In reverse order the first failing candidate is the latest beginning; INPUT, the whole, is the last candidate.
    ordered = [*reversed(begins), INPUT]
    return Part(_first_failing(ordered, lambda index: fails(Part(index, last))), last)


def _shortest_end(calls: Sequence[Call], fails: Callable[[Part], bool]) -> int:
    def ends(index: int) -> bool:
        return calls[index].shape is not None and fails(Part(INPUT, index))

    # Each dominator's part contains that of the dominator before it, so bisection finds the first that fails.
    whole = members(calls, Part(INPUT, len(calls) - 1))
    through = dominators(calls, whole)
    last = _first_failing(through, ends)
    before = through[through.index(last) - 1] if last != through[0] else INPUT
    # Between two dominators are branches, where bisection may miss the first failing call; so single steps follow.
    block = [index for index in members(calls, Part(before, last)) if index != last]
    block.sort(key=lambda index: (len(members(calls, Part(INPUT, index))), index))
    last = _first_failing([*block, last], ends)
    while True:
        shorter = next((i for i in sorted(set(calls[last].inputs)) if i != INPUT and ends(i)), None)
        if shorter is None:
            return last
        last = shorter


def _sources(call: Call, inside: set[int]) -> set[int]:
    return {index if index in inside else INPUT for index in call.inputs} or {INPUT}


def _first_failing(candidates: Sequence[int], fails: Callable[[int], bool]) -> int:
    """The first candidate that fails, by bisection; the last candidate is known to fail."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if fails(candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return candidates[high]
