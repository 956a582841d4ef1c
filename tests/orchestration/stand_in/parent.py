# ruff: noqa: T201 - a command prints
"""Starts a step that hangs, as a task's process does, and waits for it; the test kills this process."""

import sys
from pathlib import Path

from tfmot_ops.contract import OpenRunOptions, StepSpec
from tfmot_ops.runners import LocalRunner

runner = LocalRunner(module="stand_in_step", env={"PYTHONPATH": str(Path(__file__).parent)})
step = runner.start(
    StepSpec(step_id="hang", output_uri="memory://", options=OpenRunOptions(name="hang")),
    None,
    lambda line: print(line, flush=True),
)
sys.exit(step.wait().status)
