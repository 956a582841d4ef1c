"""Targets: what devices take, as data, and the programs that find out what a file costs on them. No TensorFlow."""

from tfmot_ops.targets.adaptation import adapted
from tfmot_ops.targets.by_name import available_targets, resolve_target
from tfmot_ops.targets.cost import cost_on, require_operations, require_tools, require_within_limits

__all__ = [
    "adapted",
    "available_targets",
    "cost_on",
    "require_operations",
    "require_tools",
    "require_within_limits",
    "resolve_target",
]
