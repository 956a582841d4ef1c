"""A model that tfmot clustered keeps its number of different weights through QAT into the int8 file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
from pydantic import ValidationError
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

from tfmot_ops import core
from tfmot_ops.contract import Method, Quantization, Recipe, Sparsity
from tfmot_ops.core import keras
from tfmot_ops.core.tflite.interpreter import make_interpreter

pytestmark = pytest.mark.slow

L = keras.layers
CLUSTERS = 8


def _clustered(recipe: Recipe) -> Any:
    """BatchNormalization after a convolution and after a Dense layer: folded in, and not."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for name in ("first", "second"):
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, name=name)(x)))
    x = L.ReLU()(L.BatchNormalization()(L.Dense(16, name="hidden")(L.Flatten()(x))))
    model = keras.Model(inputs, L.Dense(4, name="scores")(x))
    if recipe.sparsity:
        model = core.strip(core.prune(model, recipe)[0])
    wrapped = cluster.cluster_weights(
        model,
        number_of_clusters=CLUSTERS,
        cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
        preserve_sparsity=recipe.sparsity is not None,
    )
    stripped = tfmot.clustering.keras.strip_clustering(wrapped)
    stripped.compile("adam", "mse")
    return stripped


def _trained(recipe: Recipe) -> tuple[Any, bytes, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8, 8, 3)).astype(np.float32), rng.normal(size=(64, 4)).astype(np.float32)
    quantized, _ = core.quantize(_clustered(recipe), recipe, x)
    quantized.fit(x, y, epochs=3, verbose=0)
    return quantized, core.export_tflite(quantized, recipe), x


def _different_weights(data: bytes) -> dict[str, int]:
    """Layer -> number of different weights in its kernel in the file."""
    interpreter = make_interpreter(data)
    interpreter.allocate_tensors()
    kernels = core.profile_tflite(data).sparsity
    return {
        layer: len(np.unique(interpreter.get_tensor(detail["index"])))
        for layer in ("first", "second", "hidden", "scores")
        for detail in interpreter.get_tensor_details()
        if detail["name"] in kernels and f"L.{layer}/" in detail["name"]
    }


@pytest.mark.parametrize("sparsity", [None, Sparsity(ratio=0.5)], ids=["clusters", "clusters and zeros"])
def test_clusters_reach_the_file(sparsity: Sparsity | None) -> None:
    recipe = Recipe(name="clustered", sparsity=sparsity, quantization=Quantization(keep_clusters=True))
    quantized, data, x = _trained(recipe)
    found = _different_weights(data)
    assert set(found) == {"first", "second", "hidden", "scores"}
    assert max(found.values()) <= CLUSTERS, found
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0), profile.op_counts
    assert core.agreement(quantized, data, x)["sqnr_db"] >= 20.0


def test_without_the_word_they_are_lost() -> None:
    _, data, _ = _trained(Recipe(name="plain", quantization=Quantization()))
    assert min(_different_weights(data).values()) > CLUSTERS


def test_clusters_are_for_training() -> None:
    with pytest.raises(ValidationError, match="keep_clusters"):
        Quantization(method=Method.PTQ, keep_clusters=True)
