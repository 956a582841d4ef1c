"""Checks the calls between the layers in a saved model's config before Keras makes them.

Keras calls the layers of a functional model in rounds: in each round those whose inputs exist, until no call is left. A
call that waits for itself, or for a call that the config does not have, would keep Keras in that loop for ever. And a
call on constants alone is computed while the file is loaded, on tensors as large as the constants describe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from tfmot_ops.core.keras.types import Config
from tfmot_ops.core.saving.safe_names import is_known_layer

#: What stands in a call in place of a layer's name where the input is a constant.
_CONSTANT = "_CONSTANT_VALUE"
#: Length of a reference to a layer's result (layer, call, result), and of one with the call's further arguments.
_LENGTHS = (3, 4)
#: Most times that Keras may try a call whose inputs do not exist yet, and how many more for each call of the model.
#: Keras saves layers after those that they read, and tries again only layers that are called several times.
_MOST_TRIES, _TRIES_PER_CALL = 50_000, 10


def calls_of_constants(config: object) -> Iterator[str]:
    """Names of the layers that a functional model calls without the result of another layer.

    Keras saves no such call: it records a call only for the results of other layers among its arguments.

    Args:
        config: the config, as `json.loads` returns it.
    """
    for model in _functional_models(config):
        for layer in model["layers"]:
            for call in _calls(layer):
                if not any(True for _ in _references(call)):
                    yield _name(layer)


def check_calls(config: object) -> None:
    """Refuse a config in which a call waits for one that is never made.

    Args:
        config: the config, as `json.loads` returns it.

    Raises:
        ValueError: names a layer that is never called, or one whose arguments Keras cannot read; or the layers stand
            in an order in which Keras would take hours.
    """
    for model in _functional_models(config):
        waiting = [(layer, list(_calls(layer))) for layer in model["layers"]]
        inputs = {_name(layer) for layer in model["layers"] if layer.get("class_name") == "InputLayer"}
        made: Counter[str] = Counter({_name(layer): _first_call(layer) for layer in model["layers"]})
        for layer, calls in waiting:
            _refuse_unknown_names(layer, calls, made.keys())
        tries, most = 0, _MOST_TRIES + _TRIES_PER_CALL * sum(len(calls) for _, calls in waiting)
        while waiting:
            before = sum(made.values())
            tries += len(waiting)
            if tries > most:
                raise ValueError(f"Keras would try more than {most:,} calls, as layers stand before those they read")
            for layer, calls in waiting:
                while calls and all(
                    name in inputs or _is_made(call, made[name]) for name, call in _references(calls[0])
                ):
                    made[_name(layer)] += 1
                    calls.pop(0)
            waiting = [(layer, calls) for layer, calls in waiting if calls]
            if waiting and sum(made.values()) == before:
                raise ValueError(f"the layer {_name(waiting[0][0])!r} waits for a result that no layer gives")


def _refuse_unknown_names(layer: Config, calls: list[Any], names: Collection[str]) -> None:
    for name, _ in (reference for call in calls for reference in _references(call)):
        if name not in names:
            raise ValueError(
                f"the layer {_name(layer)!r} is called with a list of a text and two or three more values, which Keras "
                f"reads as a result of a layer of the name {name!r}: no layer has it; give such a list to the layer's "
                "constructor, or as a dict"
            )


def _is_made(call: object, made: int) -> bool:
    """Whether the call of this number was made, of `made` calls in all; False if `call` is not the number of a call."""
    return isinstance(call, int | float) and 0 <= call < made and call == int(call)


def _functional_models(config: object) -> Iterator[dict[str, Any]]:
    """The configs of functional models, of those within others too."""
    todo = [config]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            layers = part.get("layers")
            if isinstance(layers, list) and layers and all(map(_is_called_layer, layers)):
                yield part
            todo += part.values()
        elif isinstance(part, list):
            todo += (item for item in part if isinstance(item, dict | list))


def _is_called_layer(entry: object) -> bool:
    """Whether an entry of a list `layers` describes a layer with its calls; without one of these, Keras raises.

    A layer's own arguments may have lists of that name, with anything in them.
    """
    return isinstance(entry, dict) and {"class_name", "config", "name", "inbound_nodes"} <= entry.keys()


def _name(layer: Config) -> str:
    return str(layer.get("name"))


def _calls(layer: Config) -> list[Any]:
    calls = layer.get("inbound_nodes")
    return calls if isinstance(calls, list) else []


def _first_call(layer: Config) -> int:
    """Number of the first call in references: 1 for an inner model, whose call 0 is that of its own input.

    A class of another package may be a model, so there a reference to the call after the last one is accepted too.
    """
    inner = layer.get("config")
    is_model = isinstance(inner, dict) and "layers" in inner
    return int(is_model or not is_known_layer(str(layer.get("class_name"))))


def _references(call: object) -> Iterator[tuple[str, object]]:
    """(layer's name, number of its call) of each result that a call reads."""
    todo = [call]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            todo += part.values()
        elif isinstance(part, list) and len(part) in _LENGTHS and isinstance(part[0], str):
            if part[0] != _CONSTANT:
                yield part[0], part[1]
            todo += part[3:]
        elif isinstance(part, list):
            todo += part
