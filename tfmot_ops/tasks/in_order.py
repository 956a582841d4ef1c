"""Columns by name, put into the order of a model's inputs or outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfmot_ops.errors import UnsupportedModelError


def in_order(samples: object, names: list[str], kind: str) -> Any:
    """Columns by name as a list in a model's order; a single column as it is.

    Args:
        samples: one column, or columns by name.
        names: of the model's inputs or outputs, in the model's order. The name of an output may have a prefix, which
            pruning and quantising put before it.
        kind: `input` or `output`, for the message.

    Raises:
        UnsupportedModelError: the names do not fit.
    """
    if not isinstance(samples, Mapping):
        return samples
    return [samples[key] for key in keys_in_order(list(samples), names, kind)]


def keys_in_order(keys: list[str], names: list[str], kind: str) -> list[str]:
    """The keys of columns in the order of a model's inputs or outputs; see `in_order`."""
    found = [
        [key for key in keys if name == key] or [key for key in keys if name.endswith(f"_{key}")] for name in names
    ]
    # Of `box` and `big_box`, the output `quant_big_box` is the longer one.
    ordered = [max(fitting, key=len) for fitting in found if fitting]
    if sorted(ordered) != sorted(keys):
        raise UnsupportedModelError(
            f"the model's {kind}s are not those of the data set",
            required=f"{kind}s named {', '.join(keys)}",
            received=", ".join(names),
            remedy=f"name the model's {kind} layers like the arrays of the data set",
        )
    return ordered
