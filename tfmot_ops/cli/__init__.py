"""The command `tfmot-ops`: run one step, run the whole chain, list what there is, print the schemas."""

from tfmot_ops.cli.app import main

__all__ = ["main"]
