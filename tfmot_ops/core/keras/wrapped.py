"""Layers inside the wrappers of tfmot."""

from __future__ import annotations

from typing import Any

from tfmot_ops.core.keras.types import Layer


def inner_layer(layer: Layer) -> Any:
    """The layer inside a pruning or quantisation wrapper, or the layer itself."""
    return layer.layer if hasattr(layer, "pruning_vars") or hasattr(layer, "quantize_config") else layer
