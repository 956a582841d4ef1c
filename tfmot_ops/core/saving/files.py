"""Save and load models, pruned and quantised ones included."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import tensorflow_model_optimization as tfmot

from tfmot_ops.core.graph.layers import INSERTED_LAYERS
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.graph.rebuild import without_random_values, without_traces
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.policies import new_layers_with_policy
from tfmot_ops.core.keras.private import LossScaleOptimizerV3, SafeModeScope
from tfmot_ops.core.pruning.wrappers import PruneLowMagnitude
from tfmot_ops.core.quantization.quantizers import (
    ConstantQuantizer,
    LayerQuantizeConfig,
    QuantizeLayer,
    WeightQuantizer,
)
from tfmot_ops.core.quantization.range_quantizers import FixedRangeQuantizer, MaskedRangeQuantizer, RangeQuantizer
from tfmot_ops.core.saving.keras_three import read_keras_three
from tfmot_ops.core.saving.model_size import limited_variables
from tfmot_ops.core.saving.own_layers import ENTRY_POINT_GROUP, own_layers
from tfmot_ops.core.saving.safe_files import check_model_file, check_sizes
from tfmot_ops.errors import ArtifactError, TfmotOpsError, UnsupportedModelError
from tfmot_ops.system import files

#: tfmot's wrappers save their inner layer in Keras' old format, which has class names without the package. So these
#: classes must be found by their bare names.
_CLASSES: tuple[type, ...] = (
    *INSERTED_LAYERS,
    Pointwise,
    ConstantQuantizer,
    FixedRangeQuantizer,
    LayerQuantizeConfig,
    MaskedRangeQuantizer,
    PruneLowMagnitude,
    RangeQuantizer,
    WeightQuantizer,
)
_CLASSES += (QuantizeLayer,)

#: Texts in the errors by which Keras says that it does not know a class or function.
_UNKNOWN_CLASS = ("Unknown layer", "Unknown object", "Could not locate class", "Could not locate function")


def _layers_of_applications() -> dict[str, type]:
    """Class name -> class, for the layers that tf_keras.applications defines but does not register for loading."""
    modules = [module for name, module in sys.modules.items() if name.startswith(private.APPLICATIONS_PACKAGE)]
    members = [member for module in modules for member in vars(module).values() if inspect.isclass(member)]
    return {m.__name__: m for m in members if issubclass(m, keras.layers.Layer) and ".applications." in m.__module__}


@contextlib.contextmanager
def custom_objects() -> Iterator[None]:
    """A scope in which Keras can load models with layers of tfmot_ops, tfmot and tf_keras.applications.

    It has the layers of installed packages, too, see `own_layers`.
    """
    with own_layers():
        ours = _layers_of_applications() | {cls.__name__: cls for cls in _CLASSES}
        # A class that the user registered under one of these names takes precedence.
        free = {name: cls for name, cls in ours.items() if keras.saving.get_registered_object(name) is None}
        with (
            tfmot.quantization.keras.quantize_scope(),
            tfmot.sparsity.keras.prune_scope(),
            keras.saving.custom_object_scope(free),
        ):
            yield


def save_model(model: keras.Model, path: str | Path) -> None:
    """Save a model with its compile configuration; written to a temporary name and renamed, so never half-written.

    Args:
        model: a float, pruned or QAT model.
        path: a name that ends with `.h5` or `.keras`, or a folder for a SavedModel; an existing one is replaced.

    Raises:
        ArtifactError: a layer of the model cannot be saved in this format.
    """
    path = Path(path)
    try:
        with files.whole(path) as part, warnings.catch_warnings():
            # Keras warns that .h5 is legacy; the steps exchange it, as it opens in every release of tf_keras.
            warnings.filterwarnings("ignore", message="You are saving your model as an HDF5 file")
            if path.suffix in {".h5", ".hdf5"}:
                part.write_bytes(_as_hdf5(model))
            elif path.suffix == ".keras":
                _build_loss_scaling(model)
                model.save(part, save_format="keras")
            else:
                model.save(part, save_format="tf", include_optimizer=True)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ArtifactError(
            "the model cannot be saved",
            required="layers with a get_config, whose weights have unique names",
            received=f"{type(error).__name__}: {error}",
            remedy="add get_config to the model's custom layers, or save in another format (.h5, .keras or a folder)",
        ) from error


def _load(path: str, *, safe_mode: bool) -> Any:
    model = _load_with_keras(path, safe_mode=safe_mode)
    if not isinstance(model, keras.Model):  # Keras returns whatever object a `.keras` file describes
        raise TypeError(f"the file describes no model, but an object of type {type(model).__name__}")
    return model


def _load_with_keras(path: str, *, safe_mode: bool) -> Any:
    try:
        return keras.models.load_model(path, safe_mode=safe_mode)
    except AttributeError:
        # Under a global policy mixed_float16, Keras scales the loss of a float32 model too, and then does not find the
        # variables of that optimizer in a `.keras` file.
        if keras.mixed_precision.global_policy().name != "mixed_float16":
            raise
        with new_layers_with_policy("float32"):
            return keras.models.load_model(path, safe_mode=safe_mode)


def _build_loss_scaling(model: keras.Model) -> None:
    """Create the variables of an optimizer of mixed precision: Keras cannot load a `.keras` file that has none."""
    if isinstance(model.optimizer, LossScaleOptimizerV3):
        private.build_optimizer(model.optimizer, model.trainable_variables)


def _as_hdf5(model: keras.Model) -> bytes:
    """The bytes of the `.h5` file, built in memory: writing to a full disk, the HDF5 library crashes the process."""
    with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
        model.save(file, save_format="h5", include_optimizer=True)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def load_model(path: str | Path, allow_unsafe: bool = False) -> keras.Model:
    """Load a model that `save_model`, Keras or tfmot saved.

    Args:
        path: `.h5` or `.keras` file, or SavedModel folder. A file of Keras 3 is read if its layers compute the same
            in tf_keras; that model is not compiled.
        allow_unsafe: run any code that the file contains or refers to (Python code of Lambda layers, any function,
            operations on files); only for files you trust.

    Raises:
        UnsafeModelError: the file refers to something that is not known to be harmless, and `allow_unsafe` is False.
        UnsupportedModelError: Keras 3 saved the model and a layer may have no equivalent in tf_keras, or the class of a
            layer is not known.
        ArtifactError: the path does not exist, or Keras cannot read the file.
    """
    if not Path(path).exists():
        raise ArtifactError(
            "the model file does not exist",
            required="a .h5, .keras or SavedModel path",
            received=f"no file or folder {path}",
            remedy="check the path",
        )
    try:
        check_sizes(Path(path))
        read = read_keras_three(Path(path))
        if read is not None:
            return read
        # Keras reads its argument `safe_mode` for `.keras` only; SafeModeScope covers the other formats.
        with SafeModeScope(not allow_unsafe), custom_objects(), without_random_values(), without_traces():
            if allow_unsafe:
                return _load(str(path), safe_mode=False)
            with limited_variables(str(path), check_model_file(path)):
                return _load(str(path), safe_mode=True)
    except TfmotOpsError:
        raise
    except Exception as error:  # a damaged file makes Keras raise an error of any class
        is_unknown = any(text in str(error) for text in _UNKNOWN_CLASS)
        if not is_unknown:
            raise ArtifactError(
                "the model cannot be loaded",
                required="a whole .h5 or .keras file, or SavedModel folder, that tf_keras saved",
                received=f"{path}: {type(error).__name__}: {error}",
                remedy="copy the file again, or build the model from its code and save it again",
            ) from error
        raise UnsupportedModelError(
            "the model cannot be loaded",
            required="a tf_keras model; its custom layers registered with register_keras_serializable",
            received=f"{path}: {type(error).__name__}: {error}",
            remedy=f"name the model's layers under the entry-point group {ENTRY_POINT_GROUP} of an installed package, "
            "or import the package that registers them first; for a file with Lambda layers that you trust, "
            "allow_unsafe=True runs their Python code",
        ) from error
