"""Channel pruning: removing filters that are 0 changes no output, and as many MACs are left as were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Channels, Outcome, Recipe, Scope
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.errors import RecipeError
from tfmot_ops.models import build_model

pytestmark = pytest.mark.slow

L = keras.layers
X = np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype(np.float32)
FLOAT = Recipe(name="float32")


def half(macs: float = 0.5, scope: Scope | None = None) -> Recipe:
    return Recipe(name="half", channels=Channels(macs=macs, scope=scope or Scope()))


def conv(x: Any, filters: int, name: str, **more: Any) -> Any:
    x = L.Conv2D(filters, 3, padding="same", name=name, use_bias=False, **more)(x)
    return L.ReLU()(L.BatchNormalization(name=f"{name}_bn")(x))


def residual(x: Any) -> Any:
    x = conv(x, 16, "stem")
    return L.Add()([x, conv(conv(x, 24, "inner"), 16, "outer")])


def depthwise(x: Any) -> Any:
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(conv(x, 16, "stem"))
    return conv(L.ZeroPadding2D()(L.MaxPooling2D()(x)), 16, "behind")


def concatenated(x: Any) -> Any:
    x = conv(x, 16, "stem")
    return L.AveragePooling2D()(conv(L.Concatenate()([x, conv(x, 8, "side"), x]), 16, "behind"))


def squeezed(x: Any) -> Any:
    """Squeeze and excitation with functions, as MobileNetV3 has it."""
    x = conv(x, 16, "stem")
    weights = L.Reshape((1, 1, 16))(L.GlobalAveragePooling2D()(x))
    weights = L.Conv2D(16, 1, name="excite", use_bias=False)(L.ReLU()(L.Conv2D(8, 1, name="squeeze")(weights)))
    return x * (L.ReLU(6.0)(weights + 3.0) * (1.0 / 6.0))


def shared(x: Any) -> Any:
    layer = L.Conv2D(16, 3, padding="same", name="shared", use_bias=False)
    norm = L.BatchNormalization(name="shared_bn")
    x = conv(x, 16, "stem")
    return L.ReLU()(norm(layer(L.ReLU()(norm(layer(x))))))


def other_layers(x: Any) -> Any:
    x = L.SeparableConv2D(16, 3, padding="same", name="separable", depth_multiplier=2)(conv(x, 8, "stem"))
    x = L.Conv2DTranspose(12, 2, 2, name="transposed", use_bias=False)(L.PReLU(shared_axes=[1, 2])(x))
    return L.LayerNormalization()(conv(L.UpSampling2D()(x), 6, "needs_all"))


NETS = (residual, depthwise, concatenated, squeezed, shared, other_layers)


def net(body: Any) -> Any:
    set_seed(0)
    inputs = L.Input((12, 12, 3))
    x = L.Flatten()(body(inputs))
    return keras.Model(inputs, L.Dense(5, activation="softmax", name="scores")(L.Dense(12, "relu", name="dense")(x)))


def macs(model: Any) -> int:
    """Multiplications of the model's TFLite file, counted by its operations."""
    return core.profile_tflite(core.export_tflite(model, FLOAT)).macs


def silence(model: Any, names: set[str], places: np.ndarray) -> None:
    """Make the filters at some places of a BatchNormalization's input 0, and what the layer makes of them."""
    for name in names:
        layer = model.get_layer(name)
        arrays = layer.get_weights()
        for array in arrays[:2]:  # scale and offset
            array[places] = 0.0
        layer.set_weights(arrays)


@pytest.mark.parametrize("body", [residual, depthwise, concatenated, shared])
def test_removing_filters_that_are_zero_changes_no_output(body: Any) -> None:
    model = net(body)
    for layer in model.layers:  # statistics and scales that differ from one channel to the next
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([np.random.default_rng(1).uniform(0.5, 1.5, each.shape) for each in layer.get_weights()])
    tied = {residual: [{"stem_bn", "outer_bn"}, {"inner_bn"}], shared: [{"stem_bn", "shared_bn"}]}
    for names in tied.get(body, [{name} for name in (f"{each.name}_bn" for each in model.layers) if _has(model, name)]):
        count = model.get_layer(next(iter(names))).get_weights()[0].size
        silence(model, names, np.arange(0, count, 2))
    before = model.get_weights()
    smaller, reports = core.prune_channels(model, half(0.5, Scope(exclude=("dense",))))
    np.testing.assert_allclose(smaller.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)
    assert macs(smaller) <= 0.5 * macs(model)
    assert sum(row.outcome is Outcome.PRUNED for row in reports) >= 2
    for array, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, same)


def _has(model: Any, name: str) -> bool:
    return any(layer.name == name for layer in model.layers)


@pytest.mark.parametrize("body", NETS)
def test_the_macs_are_those_that_were_asked_for(body: Any) -> None:
    model = net(body)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", ["accuracy"])
    smaller, reports = core.prune_channels(model, half())
    assert 0.4 <= macs(smaller) / macs(model) <= 0.5
    assert smaller.output_shape == model.output_shape
    assert smaller.optimizer.get_config()["learning_rate"] == pytest.approx(0.1)
    smaller.fit(X, np.arange(8) % 5, epochs=1, verbose=0)
    file = core.export_tflite(smaller, core.recipes.decode("wi8_ai8_ptq"), calibration=X)
    assert core.profile_tflite(file).int8_mac_fraction == 1.0
    by_path = {row.path: row for row in reports}
    assert by_path["scores"].outcome is Outcome.NOT_PRUNED
    if body is other_layers:
        assert by_path["needs_all"].outcome is Outcome.NOT_PRUNED
        assert "needs all of them" in by_path["needs_all"].reason


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_like", "ds_cnn"])
def test_built_in_models(name: str) -> None:
    model = build_model(name, (32, 32, 1), 10, seed=0)
    smaller, _ = core.prune_channels(model, half(0.3))
    assert 0.27 <= macs(smaller) / macs(model) <= 0.3
    assert smaller.count_params() < 0.6 * model.count_params()


def test_a_scope_and_a_share_that_cannot_be_reached() -> None:
    model = net(residual)
    smaller, reports = core.prune_channels(model, half(0.8, Scope(exclude=("stem",))))
    by_path = {row.path: row for row in reports}
    assert "scope" in by_path["stem"].reason
    assert by_path["outer"].outcome is Outcome.NOT_PRUNED  # added to the stem's
    assert smaller.get_layer("stem").filters == 16
    with pytest.raises(RecipeError, match=r"at most 1% of [\d,]+ multiplications"):
        core.prune_channels(model, half(0.01))
    with pytest.raises(RecipeError, match=r"LayerNormalization \(1 calls\).* need all channels"):
        core.prune_channels(net(other_layers), half(0.01))
    with pytest.raises(RecipeError, match="without channels"):
        core.prune_channels(model, FLOAT)
    assert core.recipes.decode("macs50_wi8_ai8").channels == Channels(macs=0.5)
