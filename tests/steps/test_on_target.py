"""A chain for a target: refused before training, measured by the target's tools, held to its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops import targets
from tfmot_ops.cli.chain import Chain
from tfmot_ops.cli.chain_table import summary_notes
from tfmot_ops.contract import Goals, Limits, Status, StepResult, Target
from tfmot_ops.search.goals import with_limits_as_goals

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    y = np.arange(200) % 3
    x = (np.random.default_rng(0).normal(size=(200, 12)) + 2.0 * np.eye(3).repeat(4, 1)[y]).astype(np.float32)
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


def chain(rows: str, folder: Path, target: Any, recipe: str = "wi8_ai8") -> tuple[Chain, StepResult, list[str]]:
    said: list[str] = []
    made = Chain(
        model="mlp", dataset=rows, recipe=recipe, output=folder, tracking_uri=None,
        epochs={"train": 2, "quantize": 1}, target=target,
    )  # fmt: skip
    return made, made.run(said.append), said


def test_the_cost_on_the_target_is_measured_and_told(rows: str, tmp_path: Path):
    made, result, _ = chain(rows, tmp_path, "cortex_m")
    assert result.status is Status.OK, result.error
    assert result.parameters["target"] == "cortex_m"
    assert result.metrics["target_flash_bytes"] == result.metrics["size_bytes"]
    # A value halfway between two levels may be rounded to the other one.
    assert result.metrics["tflm_equal_outputs"] > 0.9
    assert 1_000 < result.metrics["target_ram_bytes"] < 20_000
    (line,) = [note for note in summary_notes(made.results) if note.startswith("on target cortex_m")]
    assert "equal to TFLite's reference" in line


def test_an_operation_that_the_target_lacks_is_refused_before_the_training(rows: str, tmp_path: Path):
    lacks = Target(name="plain", operations=("FULLY_CONNECTED", "RELU"))
    _, result, said = chain(rows, tmp_path, lacks)
    assert result.status is Status.FAILED
    assert result.step_id == "quantize"
    assert result.error is not None
    assert result.error.exit_code == 3
    assert "SOFTMAX" in result.error.message
    assert not [line for line in said if line.startswith("quantize epoch")]


def test_a_file_beyond_the_limits_fails_with_both_figures(rows: str, tmp_path: Path):
    _, result, _ = chain(rows, tmp_path, Target(name="tiny", limits=Limits(flash_bytes=1024)), "wi8_ai8_ptq")
    assert (result.step_id, result.status) == ("evaluate", Status.FAILED)
    assert result.error is not None
    assert result.error.exit_code == 4
    assert "flash_bytes at most 1,024" in result.error.message
    assert not list(tmp_path.glob("*.tflite"))


def test_the_target_of_a_recipe_file_counts(rows: str, tmp_path: Path):
    from tfmot_ops.recipes.names import decode

    recipe = decode("wi8_ai8_ptq").model_copy(update={"target": "per_tensor_npu"})
    made = Chain(model="mlp", dataset=rows, recipe=recipe, output=tmp_path, tracking_uri=None, epochs={"train": 1})
    result = made.run(lambda _: None)
    assert result.status is Status.OK, result.error
    assert result.parameters["target"] == "per_tensor_npu"


def test_the_limits_of_a_target_are_goals_of_a_search():
    limits = Limits(flash_bytes=2048, ram_bytes=100, npu_share=0.9, inference_ms=3.0)
    target = targets.resolve_target("ethos_u55_128").model_copy(update={"limits": limits})
    goals, free = with_limits_as_goals(Goals(max_flash=4096), target)
    assert free.limits == Limits()
    assert goals == Goals(max_flash=4096, max_ram=100, min_npu_share=0.9, max_latency=3.0)
