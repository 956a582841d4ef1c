"""The device of a step on this machine: a GPU that is asked for has to be there."""

from __future__ import annotations

import pytest

from tfmot_ops.contract import StepSpec
from tfmot_ops.errors import StepFailedError
from tfmot_ops.runners import LocalRunner


@pytest.mark.slow
def test_a_gpu_that_is_not_there_fails_the_step(tmp_path):
    options = {"kind": "train", "model": "resnet8", "dataset": "digits", "limit": 60, "epochs": 0}
    fields = {"step_id": "train", "output_uri": str(tmp_path), "options": options, "device": "gpu"}
    # Hidden, so that the test says the same on a machine that has one.
    runner = LocalRunner(env={"CUDA_VISIBLE_DEVICES": "-1"})
    with pytest.raises(StepFailedError, match="a GPU that TensorFlow sees"):
        runner.start(StepSpec.model_validate(fields), None, print).wait()
