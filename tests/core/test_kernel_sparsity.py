"""Fractions of zeros of pruned kernels in a file: recurrent kernels, which have no layer's name, are among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.measure.kernel_sparsity import pruned_kernels_in_file

L = keras.layers
RECIPE = core.recipes.decode("sparse50")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "kernels"),
    [(L.LSTM(6), 2), (L.Bidirectional(L.GRU(6)), 4), (L.Conv1D(4, 3), 1), (L.SeparableConv1D(4, 3), 1)],
)
def test_each_pruned_kernel_is_found_with_its_zeros(layer: Any, kernels: int) -> None:
    inputs = keras.Input((5, 8))
    stripped = core.strip(core.prune(keras.Model(inputs, L.Dense(3)(L.Flatten()(layer(inputs)))), RECIPE)[0])
    found = pruned_kernels_in_file(core.profile_tflite(core.export_tflite(stripped, RECIPE)), stripped, RECIPE)
    assert len(found) == kernels + 1
    assert all(abs(sparsity - 0.5) < 0.05 for _, sparsity in found)


@pytest.mark.slow
def test_a_recurrent_kernel_without_zeros_is_the_lowest() -> None:
    inputs = keras.Input((5, 8))
    stripped = core.strip(core.prune(keras.Model(inputs, L.Dense(3)(L.LSTM(6)(inputs))), RECIPE)[0])
    cell = stripped.layers[1].cell
    cell.recurrent_kernel.assign(np.ones(cell.recurrent_kernel.shape))
    found = pruned_kernels_in_file(core.profile_tflite(core.export_tflite(stripped, RECIPE)), stripped, RECIPE)
    assert min(sparsity for _, sparsity in found) == 0.0
