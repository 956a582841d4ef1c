"""Functions that prune, quantise, export and measure a model; all except `calibrate` leave the model unchanged.

Each folder is a layer of the code, and imports only from those after it: `measure`, `saving`, `tflite`, `training` and
`quantization`, `pruning`, `graph`, `keras`. The docstring of each folder's `__init__.py` says what its modules do.

A model goes through them as follows: `saving.files` loads it, `pruning.wrappers` wraps it for pruning, `training.loop`
trains it, `graph.read` and `graph.normalize` make a graph of few kinds of layers, `quantization.qat` inserts
quantisers, `tflite.export` writes the file, and `measure` compares the file with the model.
"""

from tfmot_ops.core import keras  # isort: skip - pins tf_keras before the others load TensorFlow

from importlib import import_module
from typing import Any

from tfmot_ops import recipes
from tfmot_ops.core.measure.agreement import agreement
from tfmot_ops.core.measure.latency import latency_ms
from tfmot_ops.core.measure.memory import arena_bytes
from tfmot_ops.core.measure.noise import sqnr_db
from tfmot_ops.core.measure.predictions import predict
from tfmot_ops.core.measure.sensitivity import LayerSensitivity, keep_sensitive, sensitivity, sensitivity_csv
from tfmot_ops.core.measure.sparse_encoding import SparseEncoding, compare_sparse_encoding, encode_sparse
from tfmot_ops.core.measure.sqnr_by_layer import LayerSqnr, layer_sqnr, layer_sqnr_csv
from tfmot_ops.core.pruning.channels import prune_channels
from tfmot_ops.core.pruning.sparsity import assert_sparsity, layer_sparsity
from tfmot_ops.core.pruning.wrappers import prune, pruning_callbacks, strip, wrap_low_magnitude
from tfmot_ops.core.quantization.calibration import calibrate
from tfmot_ops.core.quantization.qat import normalize, quantize
from tfmot_ops.core.saving.files import custom_objects, load_model, save_model
from tfmot_ops.core.tflite.export import export_tflite
from tfmot_ops.core.tflite.file_report import report_file, require_recipe
from tfmot_ops.core.tflite.profile import TFLiteProfile, profile_tflite

__all__ = [
    "LayerSensitivity",
    "LayerSqnr",
    "SparseEncoding",
    "TFLiteProfile",
    "agreement",
    "arena_bytes",
    "assert_sparsity",
    "calibrate",
    "compare_sparse_encoding",
    "custom_objects",
    "encode_sparse",
    "evaluate",
    "export_tflite",
    "keep_sensitive",
    "keras",
    "latency_ms",
    "layer_sparsity",
    "layer_sqnr",
    "layer_sqnr_csv",
    "load_model",
    "normalize",
    "predict",
    "profile_tflite",
    "prune",
    "prune_channels",
    "pruning_callbacks",
    "quantize",
    "recipes",
    "report_file",
    "require_recipe",
    "save_model",
    "sensitivity",
    "sensitivity_csv",
    "sqnr_db",
    "strip",
    "wrap_low_magnitude",
]

#: Name -> its module above the core, which imports these modules lazily, as they import the core.
_ABOVE = {
    "Architecture": "tfmot_ops.models.architectures",
    "application_constructors": "tfmot_ops.models.applications",
    "architecture": "tfmot_ops.models.architectures",
    "catalogue": "tfmot_ops.models.architectures",
    "check_architecture": "tfmot_ops.sweep.run.check",
    "evaluate": "tfmot_ops.tasks.evaluation",
}


def __getattr__(name: str) -> Any:
    """Resolve `evaluate`, which needs the tasks, and moved names, for scripts that still import them from here."""
    if name not in _ABOVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ABOVE[name]), name)
