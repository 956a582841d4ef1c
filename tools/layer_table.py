"""Makes `docs/layers.md`: how each layer class of tf_keras is quantised and pruned, tested in a small model.

`python -m tools.layer_table docs/layers.md` writes it; `make layers` does.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tfmot_ops.contract import LayerReport, Outcome, Recipe, Scope, Sparsity
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.pruning.wrappers import prune
from tfmot_ops.core.quantization.qat import quantize
from tfmot_ops.errors import ScopeError, UnsupportedModelError
from tfmot_ops.recipes.names import decode
from tfmot_ops.system import files

_L = keras.layers
#: Name of the layer that a row is about, in the model around it.
_NAME = "layer"

#: Argument name -> value, for required arguments of the layers' constructors.
_VALUES: dict[str, Any] = {
    **dict.fromkeys(("filters", "units", "key_dim", "output_dim"), 4),
    **dict.fromkeys(("kernel_size", "n"), 3),
    **dict.fromkeys(("rate", "stddev", "factor", "height_factor", "width_factor"), 0.1),
    **dict.fromkeys(("height", "width"), 6),
    "axes": -1,
    "dims": (2, 1, 3),
    "equation": "abcd,de->abce",
    "function": tf.sin,
    "input_dim": 20,
    "num_bins": 5,
    "num_heads": 2,
    "output_shape": (8, 8, 4),
    "scale": 0.5,
    "target_shape": (4, 16, 4),
}
#: Layer class -> arguments, for classes that need other arguments than the table above.
_MAKE: dict[type, Callable[[], Any]] = {
    _L.Activation: lambda: _L.Activation("relu", name=_NAME),
    _L.Bidirectional: lambda: _L.Bidirectional(_L.LSTM(4), name=_NAME),
    _L.CategoryEncoding: lambda: _L.CategoryEncoding(5, name=_NAME),
    _L.DenseFeatures: lambda: _L.DenseFeatures([tf.feature_column.numeric_column("input", (4,))], name=_NAME),
    _L.Discretization: lambda: _L.Discretization([0.0, 1.0], name=_NAME),
    _L.GroupNormalization: lambda: _L.GroupNormalization(2, name=_NAME),
    _L.IntegerLookup: lambda: _L.IntegerLookup(vocabulary=[1, 2], name=_NAME),
    _L.Normalization: lambda: _L.Normalization(mean=[0.0] * 4, variance=[1.0] * 4, name=_NAME),
    _L.RNN: lambda: _L.RNN(_L.LSTMCell(4), name=_NAME),
    _L.SpectralNormalization: lambda: _L.SpectralNormalization(_L.Conv2D(4, 3), name=_NAME),
    _L.StringLookup: lambda: _L.StringLookup(vocabulary=["a", "b"], name=_NAME),
    _L.TextVectorization: lambda: _L.TextVectorization(vocabulary=["a", "b"], name=_NAME),
    _L.TimeDistributed: lambda: _L.TimeDistributed(_L.Dense(4), name=_NAME),
}
#: (shape of a sample, element type) of the classes that read something else than their name says.
_READS: dict[type, tuple[tuple[int, ...], str]] = {
    **dict.fromkeys((_L.Embedding, _L.CategoryEncoding, _L.IntegerLookup, _L.Hashing), ((8,), "int64")),
    **dict.fromkeys((_L.StringLookup, _L.TextVectorization, _L.HashedCrossing), ((1,), "string")),
    **dict.fromkeys((_L.Discretization, _L.RepeatVector, _L.DenseFeatures), ((4,), "float32")),
    **dict.fromkeys((_L.LSTM, _L.GRU, _L.SimpleRNN, _L.RNN, _L.Bidirectional), ((8, 4), "float32")),
    **dict.fromkeys((_L.TimeDistributed, _L.Masking, _L.Dense), ((8, 4), "float32")),
    **dict.fromkeys((_L.Attention, _L.AdditiveAttention, _L.MultiHeadAttention), ((8, 4), "float32")),
    _L.ConvLSTM1D: ((3, 6, 4), "float32"),
    _L.ConvLSTM2D: ((3, 6, 6, 4), "float32"),
    _L.ConvLSTM3D: ((3, 4, 4, 4, 4), "float32"),
}
#: Part of a class name (`1D`, `3D`) -> shape of a sample; other classes get an image.
_BY_DIMENSIONS = {"1D": (8, 4), "3D": (6, 6, 6, 4), "": (8, 8, 4)}
_CALLS: dict[type, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(
        (
            *(_L.Add, _L.Subtract, _L.Multiply, _L.Average, _L.Maximum, _L.Minimum, _L.Concatenate, _L.Dot),
            *(_L.Attention, _L.AdditiveAttention, _L.HashedCrossing),
        ),
        lambda layer, x: layer([x, x]),
    ),
    _L.MultiHeadAttention: lambda layer, x: layer(x, x),
    _L.DenseFeatures: lambda layer, x: layer({"input": x}),
}
_NO_CALL: dict[type, str] = {
    **dict.fromkeys((_L.Layer, _L.Wrapper, _L.AbstractRNNCell), "base class of other layers"),
    **dict.fromkeys((_L.LSTMCell, _L.GRUCell, _L.SimpleRNNCell, _L.StackedRNNCells), "part of a layer, see `RNN`"),
    _L.InputLayer: "an input of the model; a float one becomes int8",
}


class LayerRow(NamedTuple):
    """What the two reports say of one class."""

    name: str
    quantized: str
    how: str
    pruned: str


def layer_classes() -> list[type]:
    """Every layer class of tf_keras.layers, by name; a class with two names once."""
    found = {member for _, member in inspect.getmembers(_L, inspect.isclass) if issubclass(member, _L.Layer)}
    return sorted(found, key=lambda cls: cls.__name__)


def row(cls: type) -> LayerRow:
    """Quantise and prune a small model around a layer of this class, and read the reports."""
    if cls in _NO_CALL:
        return LayerRow(cls.__name__, "not called", _NO_CALL[cls], "")
    model = _around(cls)
    recipe = decode("wi8_ai8")
    try:
        reports = [report for report in quantize(model, recipe)[1] if report.path.startswith(_NAME)]
    except UnsupportedModelError as error:
        return LayerRow(cls.__name__, "refused", f"{error.required}; {error.remedy}", "")
    quantized, how = _summary(cls, reports)
    return LayerRow(cls.__name__, quantized, how, _pruned(cls, model))


def page() -> str:
    """The page, Markdown."""
    lines = [
        "# Layers",
        "",
        "What becomes of each layer class of `tf_keras.layers`, channels last. Made by `make layers`: a small model",
        "around each goes through `core.quantize` and `core.prune`, and the rows are what the two report.",
        "",
        "Quantised: `int8` if every layer it is rewritten to is int8; `float` is reported so, and the rest of the",
        "model stays int8. Pruned: `yes` by a recipe without a scope; `named`: only if a scope selects it;",
        "`no kernel`: nothing in it is trained.",
        "",
        "| layer | quantised | how, or why not | pruned |",
        "|---|---|---|---|",
        *(
            f"| `{each.name}` | {each.quantized} | {each.how} | {each.pruned} |"
            for each in [row(cls) for cls in layer_classes()]
        ),
    ]
    return "\n".join(lines) + "\n"


def _around(cls: type) -> keras.Model:
    set_seed(0)
    by_name = next(shape for dimensions, shape in _BY_DIMENSIONS.items() if dimensions in cls.__name__)
    shape, dtype = _READS.get(cls, (by_name, "float32"))
    inputs = keras.Input(shape, dtype=dtype, name="input")
    # A call before it, so that it stands within a net and not at its edge.
    x = _L.Dense(4, name="before")(inputs) if dtype == "float32" else inputs
    return keras.Model(inputs, _CALLS.get(cls, lambda layer, x: layer(x))(_make(cls), x))


def _make(cls: type) -> Any:
    if cls in _MAKE:
        return _MAKE[cls]()
    arguments = {
        name: _VALUES[name]
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty and name in _VALUES
    }
    return cls(**arguments, name=_NAME)


def _summary(cls: type, reports: list[LayerReport]) -> tuple[str, str]:
    kept = [report for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    outcome = "float" if kept else "int8"
    if [report.class_name for report in reports] == [cls.__name__]:
        return outcome, reports[0].reason
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(report.class_name for report in reports))
    return outcome, "; ".join([f"becomes {names}", *dict.fromkeys(report.reason for report in kept)])


def _pruned(cls: type, model: keras.Model) -> str:
    if not model.get_layer(_NAME).trainable_weights:
        return "no kernel"
    named = Scope(include=(f"class:{cls.__name__}",))
    for word, scope in (("yes", Scope()), ("named", named)):
        recipe = Recipe(name="half", sparsity=Sparsity(ratio=0.5, scope=scope))
        try:
            # A layer that is opened is reported by the names of the layers within it.
            reports = [each for each in prune(model, recipe)[1] if each.path != "before"]
        except ScopeError:
            continue  # it was opened, so that no layer has its class
        if any(each.outcome is Outcome.PRUNED for each in reports):
            return word
    return "no"


if __name__ == "__main__":
    files.write(Path(sys.argv[1]), page())
