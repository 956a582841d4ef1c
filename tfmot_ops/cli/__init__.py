"""The command `tfmot-ops`: run one step, run the whole chain, list models and data sets, print the schemas."""

from tfmot_ops.cli.app import main

__all__ = ["main"]
