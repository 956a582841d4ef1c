"""How the AI Edge Quantizer rounds weights, by name: on a net with outliers among its weights."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tfmot_ops import core
from tfmot_ops.contract import Activations, PtqAlgorithm, Quantization, Recipe, Sparsity
from tfmot_ops.core import keras
from tfmot_ops.errors import ExportError

RNG = np.random.default_rng(0)
#: Inputs that depend on each other, which GPTQ makes use of.
SAMPLES = (RNG.normal(size=(400, 32)) @ RNG.normal(size=(32, 32))).astype(np.float32).reshape(-1, 4, 4, 2)


def recipe(algorithm: PtqAlgorithm | None, activations: Activations) -> Recipe:
    made = core.recipes.decode("wi8_ai8_ptq_aeq")
    fields = {"ptq_algorithm": algorithm, "activations": activations}
    return made.model_copy(update={"quantization": made.quantization.model_copy(update=fields)})


def small_net(*, dense: int) -> keras.Model:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = layers.Input((4, 4, 2))
    x = layers.Conv2D(8, 1, activation="relu", name="conv")(inputs)
    x = layers.Flatten()(x)  # GPTQ does not work for the fully connected operation that follows
    for place in range(dense):
        x = layers.Dense(48, activation="relu", name=f"dense_{place}")(x)
    model = keras.Model(inputs, layers.Dense(8, name="scores")(x))
    for layer in model.layers:
        if layer.name.startswith("dense"):
            values = layer.kernel.numpy()
            values[3, ::2] = 1.0
            layer.kernel.assign(values)
    return model


@pytest.fixture(scope="module")
def net() -> keras.Model:
    return small_net(dense=3)


@pytest.fixture(scope="module")
def sqnr(net) -> dict[tuple[Activations, PtqAlgorithm | None], float]:
    found = {}
    for activations in (Activations.INT8, Activations.INT16):
        for algorithm in (*PtqAlgorithm, None):
            data = core.export_tflite(net, recipe(algorithm, activations), SAMPLES[:200])
            profile = core.profile_tflite(data)
            assert (profile.float_ops, profile.output_dtypes) == (0, (str(activations),))
            found[activations, algorithm] = core.agreement(net, data, SAMPLES[200:])["sqnr_db"]
    return found


@pytest.mark.parametrize("activations", [Activations.INT8, Activations.INT16])
def test_each_algorithm_rounds_in_its_own_way(sqnr, activations):
    of = {algorithm: sqnr[activations, algorithm] for algorithm in PtqAlgorithm}
    assert sqnr[activations, None] == of[PtqAlgorithm.MIN_MAX]
    assert len({*of.values()}) == len(of)
    assert min(of.values()) > 15.0


def test_gptq_makes_up_for_rounding():
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = layers.Input((32,))
    model = keras.Model(inputs, layers.Dense(8)(layers.Dense(64, activation="relu", name="wide")(inputs)))
    kernel = model.get_layer("wide").kernel
    values = kernel.numpy()
    values[3, ::2] = 6.0  # makes the steps of every second channel coarse
    kernel.assign(values)
    x = (RNG.normal(size=(400, 16)) @ RNG.normal(size=(16, 32))).astype(np.float32)
    found = {}
    for algorithm in (PtqAlgorithm.MIN_MAX, PtqAlgorithm.GPTQ):
        data = core.export_tflite(model, recipe(algorithm, Activations.INT16), x[:200])
        found[algorithm] = core.agreement(model, data, x[200:])["sqnr_db"]
    assert found[PtqAlgorithm.GPTQ] > found[PtqAlgorithm.MIN_MAX] + 1.0


def test_a_model_without_an_operation_for_gptq_is_refused():
    with pytest.raises(ExportError, match="nothing to round"):
        core.export_tflite(small_net(dense=0), recipe(PtqAlgorithm.GPTQ, Activations.INT8), SAMPLES[:8])


def test_weights_without_calibration(net):
    """Float activations: the weights alone are rounded."""
    plain, octav = (
        core.export_tflite(net, recipe(algorithm, Activations.FLOAT32)) for algorithm in (None, PtqAlgorithm.OCTAV)
    )
    assert plain != octav
    assert core.agreement(net, octav, SAMPLES[200:])["sqnr_db"] > 25.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "ptq"}, "backend: ai_edge_quantizer, received converter"),
        ({"method": "qat"}, "backend: ai_edge_quantizer"),
        ({"method": "ptq", "backend": "ai_edge_quantizer", "activations": "float32"}, "calibrated"),
    ],
)
def test_an_algorithm_that_could_do_nothing_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Quantization.model_validate({**fields, "ptq_algorithm": "gptq"})


def test_gptq_does_not_keep_zeros():
    quantization = recipe(PtqAlgorithm.GPTQ, Activations.INT8).quantization
    with pytest.raises(ValidationError, match="cannot be combined with sparsity"):
        Recipe(name="mine", sparsity=Sparsity(ratio=0.5), quantization=quantization)
