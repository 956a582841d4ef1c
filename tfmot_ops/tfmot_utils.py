"""Compatibility module: the names of the original `tfmot_utils`, implemented with `core`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tfmot_ops import core
from tfmot_ops.contract import Method, Quantization, Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.graph.samples import Calibration
from tfmot_ops.core.keras.types import Config, Layer
from tfmot_ops.core.quantization.quantizers import LayerQuantizeConfig
from tfmot_ops.core.quantization.range_quantizers import RangeQuantizer
from tfmot_ops.core.saving.keras_three import read_keras_three
from tfmot_ops.core.saving.safe_files import check_model_file

#: Part of a typical error message -> its short name; seen with TF 2.21.0 and tfmot 0.8.1.
TYPICAL_ERRORS = {
    "Shape must be rank 4 but is rank 5": "tensor rank",
    "keras Model inside another keras Model": "nested models",
    "tf.__operators__.add": "unsupported operation (a plain tensor sum)",
}
#: Recipe of the original interface: int8 weights and activations with quantisation-aware training.
_QUANTIZE = Recipe(name="wi8_ai8", quantization=Quantization(method=Method.QAT))


@keras.saving.register_keras_serializable("tfmot_ops")
class NoOpQuantizeConfig(LayerQuantizeConfig):
    """Quantises nothing: no weights, no activations, no outputs."""

    def __init__(self) -> None:
        super().__init__()

    def get_config(self) -> dict[str, Any]:
        """No arguments."""
        return {}

    @classmethod
    def from_config(cls, config: Config) -> NoOpQuantizeConfig:
        """The inverse of `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable("tfmot_ops")
class DefaultBNQuantizeConfig(LayerQuantizeConfig):
    """For BatchNormalization: one output quantiser, 8-bit moving average, per tensor, asymmetric, not narrow."""

    def __init__(self) -> None:
        super().__init__(output=RangeQuantizer())

    def get_config(self) -> dict[str, Any]:
        """No arguments."""
        return {}

    @classmethod
    def from_config(cls, config: Config) -> DefaultBNQuantizeConfig:
        """The inverse of `get_config`."""
        return cls(**config)


class Quantize:
    """Callable: model -> (QAT model, normalised float model), both compiled like the model.

    The second model is the one on which the quantisers were placed; the original module returned tfmot's annotated
    model instead.
    """

    def __call__(self, model: keras.Model, calibration: Calibration | None = None) -> tuple[keras.Model, keras.Model]:
        """Quantise a copy of the model; `calibration` as in `core.quantize`."""
        quantized, _ = core.quantize(model, _QUANTIZE, calibration)
        return quantized, core.normalize(model)

    @staticmethod
    def load_model(path: str, **kwargs: Any) -> keras.Model:
        """Load a saved model with quantised layers, ours, tfmot's or the original module's.

        Args:
            path: `.h5` or `.keras` file, or SavedModel folder.
            kwargs: as for `keras.models.load_model`; `safe_mode=False` loads a file that could run code.

        Raises:
            UnsafeModelError: the file could run code.
            UnsupportedModelError: Keras 3 saved the model, and a layer may have no equivalent in tf_keras.
        """
        read = read_keras_three(Path(path))
        if read is not None:
            return read
        scope = {cls.__name__: cls for cls in (NoOpQuantizeConfig, DefaultBNQuantizeConfig)}
        with (
            core.custom_objects(),
            keras.saving.custom_object_scope(scope | (kwargs.get("custom_objects") or {})),
        ):
            if kwargs.get("safe_mode", True):
                check_model_file(path)
            return keras.models.load_model(path, **kwargs)


def prune_low_magnitude(
    layer_or_model: Layer | list[Layer], *, exceptions: Iterable[str | type] = (), **kwargs: Any
) -> Any:
    """Wrap the prunable layers of a model, nested models included, or single layers.

    Args:
        layer_or_model: a model (a wrapped copy is returned), one layer, or a list of layers.
        exceptions: layer classes, or their names, that are not wrapped. Layers without a kernel (Resizing, Rescaling,
            custom layers that are no `PrunableLayer`) are never wrapped.
        kwargs: as for `tfmot.sparsity.keras.prune_low_magnitude`: `pruning_schedule`, `block_size`,
            `block_pooling_type`, `pruning_policy`, `sparsity_m_by_n`.
    """
    names = [name if isinstance(name, str) else name.__name__ for name in exceptions]
    return core.wrap_low_magnitude(layer_or_model, names, **kwargs)


def unprune(model: keras.Model) -> keras.Model:
    """A copy without pruning wrappers."""
    return core.strip(model)


def get_pruning_callbacks(tensorboard_dir: str | None = None) -> list[Any]:
    """The callbacks for training a pruned model; with a folder also TensorBoard summaries."""
    return core.pruning_callbacks(tensorboard_dir)


def test_applications(
    applications: Iterable[Callable[..., keras.Model]] | None = None,  # noqa: PT028 - the original name, not a test
    include_top: bool = False,  # noqa: PT028
) -> dict[str, str | None]:
    """Quantise models of `keras.applications` and print their names, green on success and red on failure.

    Args:
        applications: constructors (`keras.applications.MobileNetV2`); None takes all.
        include_top: build with the classification head; then the input has the default size.

    Returns:
        Constructor name -> None on success, otherwise the short name from `TYPICAL_ERRORS` or the error message.
    """
    console = Console(file=sys.stdout, highlight=False)
    results: dict[str, str | None] = {}
    for build in core.application_constructors().values() if applications is None else applications:
        name = build.__name__
        results[name] = _try_to_quantize(build, include_top)
        reason = results[name]
        # As Text, since rich would interpret square brackets in a message as markup.
        line = Text(name, "green") if reason is None else Text(f"{name}: {reason}", "red")
        console.print(line, soft_wrap=True)
        keras.backend.clear_session()
    return results


# A function that users call, not a test that pytest collects.
test_applications.__test__ = False  # type: ignore[attr-defined]
#: The original module's spelling, kept for its users.
test_aplications = test_applications


def _try_to_quantize(build: Callable[..., keras.Model], include_top: bool) -> str | None:
    arguments: dict[str, Any] = {"weights": None, "include_top": include_top}
    if not include_top:
        arguments["input_shape"] = (None, None, 3)
    if "include_preprocessing" in inspect.signature(build).parameters:
        arguments["include_preprocessing"] = False
    try:
        Quantize()(build(**arguments))
    except Exception as error:  # noqa: BLE001 - one architecture's failure must not stop the list
        message = str(error)
        return next((short for text, short in TYPICAL_ERRORS.items() if text in message), message)
    return None
