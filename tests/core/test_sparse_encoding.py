"""TFLite's sparse encoding on pruned files: smaller before gzip, larger after it, and no faster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfmot_ops import core, models
from tfmot_ops.contract import Recipe
from tfmot_ops.core.measure.sparse_encoding import compare_sparse_encoding, encode_sparse
from tfmot_ops.core.tflite.interpreter import make_interpreter
from tfmot_ops.errors import ArtifactError, ExportError

X = np.random.default_rng(0).random((8, 8, 8, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def pruned() -> Any:
    model = models.build_model("resnet8", (8, 8, 1), 10, seed=0)
    return core.strip(core.prune(model, core.recipes.decode("sparse80_wi8_ai8_ptq"))[0])


def outputs(data: bytes) -> np.ndarray:
    interpreter = make_interpreter(data, xnnpack=False)
    interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(
        detail["index"], (X[:1] * (100 if detail["dtype"] is np.int8 else 1)).astype(detail["dtype"])
    )
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.slow
def test_an_int8_file_shrinks_but_not_after_gzip_and_xnnpack_refuses_it(pruned, record_property):
    data = core.export_tflite(pruned, core.recipes.decode("sparse80_wi8_ai8_ptq"), X)
    found = compare_sparse_encoding(data, runs=30)
    record_property("int8", repr(found))
    assert found.dense.size_bytes == len(data)
    assert found.sparse.size_bytes < 0.75 * found.dense.size_bytes
    assert found.sparse.gzip_bytes > found.dense.gzip_bytes
    # If a later runtime takes such a file, this says so; then look at its latency.
    assert found.dense.xnnpack is not None
    assert found.sparse.xnnpack is None
    assert "XNNPack" in found.sparse.refusal
    # Unpacked once, before the first run: the kernels see dense weights and take as long.
    assert found.sparse.builtin.median == pytest.approx(found.dense.builtin.median, rel=0.5)
    assert np.array_equal(outputs(encode_sparse(data)), outputs(data))


def test_a_float_file_is_taken_by_xnnpack_and_no_faster(pruned, record_property):
    data = core.export_tflite(pruned, Recipe(name="float32"))
    found = compare_sparse_encoding(data, runs=30)
    record_property("float32", repr(found))
    assert found.sparse.size_bytes < 0.4 * found.dense.size_bytes
    assert found.sparse.xnnpack.median > 0.5 * found.dense.xnnpack.median
    assert found.sparse.refusal == ""
    assert core.profile_tflite(encode_sparse(data)).op_counts["DENSIFY"] > 0
    assert core.profile_tflite(encode_sparse(data)).weight_sparsity > 0.7
    np.testing.assert_allclose(outputs(encode_sparse(data)), outputs(data), atol=1e-6)


def test_a_dense_file_stays_as_it_is():
    data = core.export_tflite(models.build_model("resnet8", (8, 8, 1), 10, seed=0), Recipe(name="float32"))
    encoded = encode_sparse(data)
    assert "DENSIFY" not in core.profile_tflite(encoded).op_counts
    assert abs(len(encoded) - len(data)) < 1024


def test_what_the_runtime_refuses_is_an_error_of_ours(pruned):
    data = encode_sparse(core.export_tflite(pruned, core.recipes.decode("sparse80_wi8_ai8_ptq"), X))
    with pytest.raises(ArtifactError, match="XNNPACK supports"):
        core.latency_ms(data)
    assert core.latency_ms(data, runs=3, xnnpack=False).median > 0.0


def test_bytes_that_are_no_file_are_refused():
    with pytest.raises((ArtifactError, ExportError)):
        compare_sparse_encoding(b"no model")
    with pytest.raises(ExportError, match="refused"):
        encode_sparse(b"no model")
