"""The evaluate step's figures, from a whole chain in this process."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tfmot_ops.cli.chain import Chain
from tfmot_ops.contract import ArtifactFormat, Status, StepResult

pytestmark = pytest.mark.slow


def evaluated(recipe: str, folder: Path) -> tuple[StepResult, list[dict[str, str]]]:
    chain = Chain(
        model="resnet8",
        dataset="digits",
        recipe=recipe,
        output=folder,
        tracking_uri=None,
        epochs={"train": 2, "prune": 1, "fine_tune": 1, "quantize": 1},
        data={"limit": 400, "batch_size": 32},
    )
    result = chain.run(lambda _: None)
    assert result.status is Status.OK, result.error
    return result, table_of(result, "layer_sqnr")


def table_of(result: StepResult, output: str) -> list[dict[str, str]]:
    artifact = result.outputs[output]
    assert artifact.format is ArtifactFormat.CSV
    return list(csv.DictReader(Path(artifact.uri.removeprefix("file://")).read_text().splitlines()))


def test_a_pruned_qat_chain(tmp_path):
    result, rows = evaluated("sparse80_wi8_ai8", tmp_path)
    metrics = result.metrics
    for name in ("latency", "latency_all_threads"):
        assert 0.0 < metrics[f"{name}_p10_ms"] <= metrics[f"{name}_ms"] <= metrics[f"{name}_p90_ms"]
    assert result.parameters["latency_all_threads"] == os.cpu_count()
    # Input, output and scratch of the widest layer of 8 x 8 images: some kilobytes.
    assert 2 * 8 * 8 * 16 < metrics["arena_bytes"] < 100_000
    assert metrics["sparse_encoding_size_bytes"] < metrics["size_bytes"]
    assert metrics["sparse_encoding_gzip_bytes"] > metrics["gzip_bytes"]
    assert "latency_sparse_encoding_ms" not in metrics
    assert result.parameters["sparse_encoding"].startswith("refused with XNNPACK")
    by_path = {row["path"]: row for row in rows}
    assert next(iter(by_path)) == "stem_conv"
    assert list(by_path)[-1] == "scores_softmax"
    assert all(row["float_to_qat_db"] for row in rows)
    assert float(by_path["stem_relu"]["qat_to_tflite_db"]) > 20.0
    worst = by_path[result.parameters["worst_layer"]]
    assert float(worst["float_to_tflite_db"]) == pytest.approx(metrics["worst_layer_sqnr_db"], abs=0.005)


def test_a_ptq_chain_has_no_qat_column_and_no_sparse_encoding(tmp_path):
    result, rows = evaluated("wi8_ai8_ptq_aeq", tmp_path)
    assert {row["float_to_qat_db"] for row in rows} == {""}
    assert float({row["path"]: row for row in rows}["scores"]["float_to_tflite_db"]) > 20.0
    assert not [name for name in {*result.metrics, *result.parameters} if "sparse" in name]


def test_a_chain_with_fewer_filters_that_keeps_its_most_sensitive_layers_in_float(tmp_path):
    chain = Chain(
        model="resnet8",
        dataset="digits",
        recipe="macs50_wi8_ai8_keep30_ptq",
        output=tmp_path,
        tracking_uri=None,
        epochs={"train": 1},
        data={"limit": 200, "batch_size": 32},
    )
    said: list[str] = []
    result = chain.run(said.append)
    assert result.status is Status.OK, result.error
    (kept,) = (line.partition("kept in float: ")[2].split(", ") for line in said if "kept in float: " in line)
    assert 0.7 <= result.metrics["int8_mac_fraction"] < 1.0
    # 30 % of the weights take four bytes; the float size is that of the trained model with all its filters.
    assert result.metrics["size_bytes"] < 0.35 * result.metrics["float_size_bytes"]
    assert any(" filters stay" in row.reason for each in chain.results for row in each.layers)
    quantized = next(each for each in chain.results if each.step_id == "quantize")
    rows = table_of(quantized, "sensitivity")
    weights = {row["paths"]: int(row["weights"]) for row in rows}
    inside = [paths for paths in weights if set(paths.split()) <= set(kept)]
    assert inside
    assert sum(weights[paths] for paths in inside) <= 0.3 * sum(weights.values())
