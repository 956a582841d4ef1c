"""Both PTQ back ends on the same trained networks: the TFLite converter, and the AI Edge Quantizer."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from tfmot_ops import core, models
from tfmot_ops.contract import Backend, Method, Outcome, Quantization, Recipe, Sparsity
from tfmot_ops.core.training.loop import fit
from tfmot_ops.data.splits import Dataset, load_dataset
from tfmot_ops.errors import ExportError, RecipeError
from tfmot_ops.tasks.classification import compile_default

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", seed=0)


@pytest.fixture(scope="module", params=["resnet8", "mobilenet_like"])
def trained(request, digits) -> Any:
    model = models.build_model(request.param, digits.input_shape, digits.num_classes, seed=0)
    compile_default(model, 1e-3)
    validation = (digits.x_validation, digits.y_validation)
    fit(model, digits.x_train, digits.y_train, validation, epochs=6, batch_size=64, seed=0)
    return model


def test_both_back_ends_make_an_int8_file_as_good_as_the_float_model(trained, digits, record_property):
    expected = core.evaluate(trained, digits.x_test, digits.y_test)["accuracy"]
    assert expected > 0.9
    for name in ("wi8_ai8_ptq", "wi8_ai8_ptq_aeq"):
        data = core.export_tflite(trained, core.recipes.decode(name), digits.x_calibration)
        profile = core.profile_tflite(data)
        assert profile.input_dtypes == profile.output_dtypes == ("int8",)
        assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0)
        accuracy = core.evaluate(data, digits.x_test, digits.y_test)["accuracy"]
        agreement = core.agreement(trained, data, digits.x_test)
        # Of 359 test samples each counts 0.28 points.
        assert accuracy == pytest.approx(expected, abs=0.015)
        assert agreement["sqnr_db"] > 30.0
        figures = f"{trained.name} {name}: accuracy {accuracy:.4f} (float {expected:.4f}), "
        figures += f"{agreement['sqnr_db']:.1f} dB, {profile.size_bytes} bytes, gzip {profile.gzip_bytes}"
        record_property(name, figures)


@pytest.mark.parametrize(("name", "dtype"), [("wi8_ai16_ptq_aeq", "int16"), ("wi8_afp32_ptq_aeq", "float32")])
def test_the_other_activations_of_the_back_end(trained, digits, name, dtype):
    calibration = digits.x_calibration[:64] if dtype == "int16" else None
    data = core.export_tflite(trained, core.recipes.decode(name), calibration)
    profile = core.profile_tflite(data)
    assert profile.input_dtypes == profile.output_dtypes == (dtype,)
    assert core.agreement(trained, data, digits.x_test)["sqnr_db"] > 35.0


def test_layers_are_reported_and_zeros_kept(trained, digits):
    recipe = core.recipes.decode("sparse50_wi8_ai8_ptq_aeq")
    stripped = core.strip(core.prune(trained, recipe)[0])
    data = core.export_tflite(stripped, recipe, digits.x_calibration[:64])  # refuses a kernel that lost zeros
    assert core.profile_tflite(data).weight_sparsity > 0.4
    assert all(report.outcome is not Outcome.KEPT_FLOAT for report in core.report_file(stripped, data))


def test_the_back_end_needs_calibration_data(trained):
    with pytest.raises(ExportError, match="calibration data"):
        core.export_tflite(trained, core.recipes.decode("wi8_ai8_ptq_aeq"))


def test_a_missing_package_is_named(trained, digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_quantizer", None)
    with pytest.raises(RecipeError, match="litert-quantizer"):
        core.export_tflite(trained, core.recipes.decode("wi8_ai8_ptq_aeq"), digits.x_calibration[:8])


def test_the_name_says_the_back_end():
    for name in ("wi8_ai8_ptq_aeq", "wi8_ai8_aeq"):
        quantization = core.recipes.decode(name).quantization
        assert quantization == Quantization(method=Method.PTQ, backend=Backend.AI_EDGE_QUANTIZER)
    assert core.recipes.decode("sparse50_wi8_ai8_aeq") == Recipe(
        name="sparse50_wi8_ai8_aeq", sparsity=Sparsity(ratio=0.5), quantization=quantization
    )
    with pytest.raises(RecipeError, match="without weights"):
        core.recipes.decode("sparse50_aeq")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"method": "qat"}, "after training"), ({"weights": "float16", "activations": "float32"}, "int8 weights")],
    ids=["qat", "float16"],
)
def test_what_the_back_end_cannot_do_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Quantization.model_validate({"method": "ptq", "backend": "ai_edge_quantizer", **wrong})
