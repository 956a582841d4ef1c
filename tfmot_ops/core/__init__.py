"""Model in, model or bytes out: pure functions that copy their argument and never mutate it."""

from tfmot_ops.core.legacy_keras import keras  # isort: skip - pins tf_keras before the others load TensorFlow

from tfmot_ops.core import recipes
from tfmot_ops.core.catalog import Architecture, architecture, catalogue
from tfmot_ops.core.compat import check_architecture
from tfmot_ops.core.evaluate import agreement, evaluate, predict, sqnr_db
from tfmot_ops.core.export import export_tflite
from tfmot_ops.core.file_report import report_file, require_recipe
from tfmot_ops.core.layer_sqnr import LayerSqnr, layer_sqnr, layer_sqnr_csv
from tfmot_ops.core.memory import arena_bytes
from tfmot_ops.core.models import application_constructors
from tfmot_ops.core.persist import custom_objects, load_model, save_model
from tfmot_ops.core.profile import TFLiteProfile, latency_ms, profile_tflite
from tfmot_ops.core.prune import prune, pruning_callbacks, strip, wrap_low_magnitude
from tfmot_ops.core.quantize import calibrate, normalize, quantize
from tfmot_ops.core.sparse_encoding import SparseEncoding, compare_sparse_encoding, encode_sparse
from tfmot_ops.core.sparsity import assert_sparsity, layer_sparsity

__all__ = [
    "Architecture",
    "LayerSqnr",
    "SparseEncoding",
    "TFLiteProfile",
    "agreement",
    "application_constructors",
    "architecture",
    "arena_bytes",
    "assert_sparsity",
    "calibrate",
    "catalogue",
    "check_architecture",
    "compare_sparse_encoding",
    "custom_objects",
    "encode_sparse",
    "evaluate",
    "export_tflite",
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
    "pruning_callbacks",
    "quantize",
    "recipes",
    "report_file",
    "require_recipe",
    "save_model",
    "sqnr_db",
    "strip",
    "wrap_low_magnitude",
]
