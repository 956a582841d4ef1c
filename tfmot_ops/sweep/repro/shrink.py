"""The smallest part of a layer graph that still fails, found by bisection (delta debugging). Loads no TensorFlow.

Its end is bisected first, then its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

#: Instead of a call's index: the model's own input.
INPUT = -1


@dataclass(frozen=True)
class Call:
    """One call of a layer in a model's graph.

    Attributes:
        layer: the layer's name in the model.
        kind: its class, with the function for a layer that records one (`TFOpLambda:nn.relu6`).
        inputs: indices of the calls it reads, `INPUT` for the model's input.
        node: which of the layer's calls it is, as Keras counts them.
        shape: of one sample of its output; None when it has several outputs or a size is unknown.
        entry: of a model nested in this one, the shape of one sample of its input; None for any other layer, and where
            it has several inputs or a size is unknown.
    """

    layer: str
    kind: str
    inputs: tuple[int, ...]
    node: int = 0
    shape: tuple[int, ...] | None = None
    entry: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Part:
    """The calls from behind `first` (`INPUT`: from the model's input) to `last`."""

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
    """The dominators of a part's end: the calls that every path from its input to its end leads through, itself too."""
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
    """The smallest part that fails, as far as bisection and then single steps (delta debugging) find it.

    Args:
        calls: in topological order; the whole, which ends with the last one, is known to fail.
        fails: whether a part fails in the way that is looked for.

    Returns:
        A part that was seen to fail (or the whole). Without its last call it passes, and so it does with any later
        beginning that one tensor can be.
    """
    last = _shortest_end(calls, fails)
    whole = Part(INPUT, last)
    begins = [index for index in dominators(calls, members(calls, whole))[:-1] if calls[index].shape is not None]
    # The latest beginning is the first one in reverse; the whole is behind them all.
    ordered = [*reversed(begins), INPUT]
    return Part(_first_failing(ordered, lambda index: fails(Part(index, last))), last)


def _shortest_end(calls: Sequence[Call], fails: Callable[[Part], bool]) -> int:
    def ends(index: int) -> bool:
        return calls[index].shape is not None and fails(Part(INPUT, index))

    # What every path leads through grows with each step, so halving is sure to find the first that fails.
    whole = members(calls, Part(INPUT, len(calls) - 1))
    through = dominators(calls, whole)
    last = _first_failing(through, ends)
    before = through[through.index(last) - 1] if last != through[0] else INPUT
    # Between two of them are branches, where halving may miss; single steps then go on.
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
    """The first candidate that fails; the last one is known to."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if fails(candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return candidates[high]
