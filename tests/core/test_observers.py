"""How activation ranges are found from calibration samples: each method, before QAT and in both PTQ back ends."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from pydantic import ValidationError

from tfmot_ops import core
from tfmot_ops.contract import Quantization, RangeMethod, Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.quantization.observers import Extremes, Histogram, MovingAverage, mse_range, percentile_range
from tfmot_ops.core.quantization.ranges import tied_ranges
from tfmot_ops.errors import CalibrationError

RNG = np.random.default_rng(0)
HEAVY = RNG.standard_t(2, 50_000).astype(np.float32)
VALUES = {
    "both signs": HEAVY,
    "ReLU": np.maximum(HEAVY, 0.0),
    "negative": -np.abs(HEAVY),
    "one outlier": np.append(np.maximum(RNG.normal(size=50_000), 0.0), 1000.0).astype(np.float32),
    "tiny": HEAVY * np.float32(1e-20),
}


def rounding_error(values: np.ndarray, low: float, high: float, levels: float) -> float:
    step = (high - low) / levels
    zero = np.round(-low / step)
    rounded = (np.clip(np.round(values / step) + zero, 0, levels) - zero) * step
    return float(np.mean((rounded - values.astype(np.float64)) ** 2))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_percentile_is_that_of_the_sorted_values(values):
    observer = Histogram(partial(percentile_range, percent=99.0))
    observer.add(values)
    expected = np.percentile(values, [1.0, 99.0], method="nearest")
    # A class of values is 1/128 wide.
    np.testing.assert_allclose(observer.range(), [min(expected[0], 0), max(expected[1], 0)], rtol=1 / 64)


@pytest.mark.parametrize("levels", [7.0, 15.0, 255.0])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_no_range_of_a_grid_rounds_better_than_that_of_mse(values, levels):
    observer = Histogram(partial(mse_range, levels=levels))
    observer.add(values)
    shares = np.geomspace(0.02, 1.0, 30)
    lows = min(float(values.min()), 0.0) * (shares if values.min() < 0 else np.ones(1))
    highs = max(float(values.max()), 0.0) * (shares if values.max() > 0 else np.ones(1))
    best = min(rounding_error(values, low, high, levels) for low in lows for high in highs)
    # The search assumes that errors are spread evenly over a level, and steps by 3 %: within 1 dB with few levels.
    assert rounding_error(values, *observer.range(), levels) < best * 1.25


def test_clipping_pays_with_few_levels():
    observer = Histogram(partial(mse_range, levels=7.0))
    observer.add(HEAVY)
    low, high = observer.range()
    assert HEAVY.min() < 2.0 * low < 0.0 < 2.0 * high < HEAVY.max()


@pytest.mark.parametrize("choose", [partial(percentile_range, percent=99.9), partial(mse_range, levels=255.0)])
def test_a_histogram_does_not_depend_on_how_the_values_are_cut(choose):
    whole, parts = Histogram(choose), Histogram(choose)
    whole.add(HEAVY)
    for part in np.array_split(HEAVY, 97):
        parts.add(part.reshape(1, -1, 1))
        parts.end_batch()
    assert whole.range() == parts.range()


def test_a_moving_average_starts_with_the_first_batch_and_moves_by_a_tenth():
    observer = MovingAverage()
    for calls in ([[-1.0, 2.0], [4.0]], [[-11.0, 14.0]]):  # in the first batch, the layer is called twice
        for values in calls:
            observer.add(np.float32(values))
        observer.end_batch()
    assert observer.range() == pytest.approx((-2.0, 5.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("make", [Extremes, MovingAverage, partial(Histogram, partial(mse_range, levels=255.0))])
def test_what_is_not_finite_stays_so(make, bad):
    observer = make()
    observer.add(np.float32([1.0, bad, 2.0]))
    observer.add(np.float32([3.0]))
    observer.end_batch()
    assert not np.isfinite(observer.range()).all()


@pytest.mark.parametrize("make", [Extremes, MovingAverage, partial(Histogram, partial(percentile_range, percent=99.0))])
def test_zeros_alone_have_no_width(make):
    observer = make()
    observer.add(np.zeros((3, 4), np.float32))
    observer.end_batch()
    assert observer.range() == (0.0, 0.0)


def recipe(name: str, **fields: object) -> Recipe:
    made = core.recipes.decode(name)
    return made.model_copy(update={"quantization": made.quantization.model_copy(update=fields)})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    x = RNG.random((200, 6, 6, 2), dtype=np.float32)
    x[17, 2, 3, 1] = 50.0  # one outlier among 14,400 values
    return x


@pytest.fixture(scope="module")
def net() -> keras.Model:
    """A large value and a small one are added: TFLite writes the sum over the small one."""
    layers = keras.layers
    inputs = layers.Input((6, 6, 2))
    large = layers.Conv2D(4, 1, kernel_initializer="ones", activation="relu", name="large")(inputs)
    small = layers.Conv2D(4, 1, kernel_initializer=keras.initializers.Constant(1e-3), name="small")(large)
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(layers.Add(name="sum")([large, small]))))


def widths_in(data: bytes) -> dict[str, float]:
    """Name of a tensor -> width of its range, for the int8 activations with one scale."""
    interpreter = Interpreter(model_content=data)
    return {
        detail["name"]: 255 * float(detail["quantization_parameters"]["scales"][0])
        for detail in interpreter.get_tensor_details()
        if detail["dtype"] is np.int8 and len(detail["quantization_parameters"]["scales"]) == 1
    }


@pytest.mark.parametrize("method", [*RangeMethod, None])
def test_the_file_has_the_range_of_the_method_in_both_back_ends(net, images, method):
    large = np.maximum(images.sum(axis=-1), 0.0)
    expected = {
        RangeMethod.PERCENTILE: np.percentile(large, 99.9),
        RangeMethod.MOVING_AVERAGE: large[:64].max() * 0.81 + large[64:128].max() * 0.09 + large[128:192].max() * 0.1,
    }
    if method is RangeMethod.MOVING_AVERAGE:  # the last, smaller batch counts as one
        expected[method] = expected[method] * 0.9 + large[192:].max() * 0.1
    fields = {"ranges": method, "percentile": 99.9 if method is RangeMethod.PERCENTILE else None}
    for name in ("wi8_ai8_ptq", "wi8_ai8_ptq_aeq"):
        widths = widths_in(core.export_tflite(net, recipe(name, **fields), images))
        found = next(width for tensor, width in widths.items() if "large" in tensor and "Relu" in tensor)
        # 8 bits keep an outlier of 50 times the other values; mse decides so too.
        assert found == pytest.approx(expected.get(method, large.max()), rel=0.03)


@pytest.mark.parametrize("name", ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq"])
def test_the_range_of_a_tensor_is_not_that_of_the_sum_written_over_it(net, images, name):
    widths = widths_in(core.export_tflite(net, core.recipes.decode(name), images))
    found = next(width for tensor, width in widths.items() if "small" in tensor)
    assert found == pytest.approx(4e-3 * images.sum(axis=-1).max(), rel=0.01)


def test_qat_starts_with_the_range_of_the_method(net, images):
    large = images.sum(axis=-1)
    found = {}
    for method in RangeMethod:
        quantized, _ = core.quantize(net, recipe("wi8_ai8", ranges=method, percentile=99.9), images)
        ranges = tied_ranges(read_graph(quantized)).items()
        found[method] = next(high for layer, (_, high) in ranges if inner_layer(layer).name.startswith("large"))
    assert found[RangeMethod.MINMAX] == pytest.approx(large.max())
    assert found[RangeMethod.MSE] == pytest.approx(large.max(), rel=0.03)
    assert found[RangeMethod.PERCENTILE] == pytest.approx(np.percentile(large, 99.9, method="nearest"), rel=0.02)
    assert large[64:].max() < found[RangeMethod.MOVING_AVERAGE] < large.max()


def test_a_value_that_is_not_finite_is_refused_by_name(net, images):
    far = images.copy()
    far[0, 0, 0] = 3e38  # the sum of both channels is infinite
    with pytest.raises(CalibrationError, match="large"):
        core.quantize(net, recipe("wi8_ai8", ranges=RangeMethod.MSE), far)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "ptq", "activations": "float32", "ranges": "mse"}, "int8 or int16"),
        ({"ranges": "mse", "percentile": 99.0}, "ranges: percentile"),
        ({"percentile": 99.0}, "received minmax"),
        ({"ranges": "percentile", "percentile": 100.0}, "less than 100"),
        ({"ranges": "percentile", "percentile": 40.0}, "greater than or equal to 50"),
    ],
)
def test_fields_that_would_do_nothing_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Quantization.model_validate(fields)


def test_an_earlier_release_reads_a_recipe_without_the_new_fields():
    assert not {"ranges", "percentile"} & Quantization().model_dump().keys()
    assert Quantization(ranges="mse").model_dump()["ranges"] == "mse"
