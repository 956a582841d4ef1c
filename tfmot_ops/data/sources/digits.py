"""scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np

from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Reader, Source


def read_digits(text: str = "") -> Source:
    """1797 images [N, 8, 8, 1] of floats in [0, 1] with labels 0 to 9."""
    from sklearn.datasets import load_digits

    Query.of_name("digits", text, ())
    bunch = load_digits()
    # The images are counts of 0 to 16 dark pixels in 4x4 blocks.
    images = (bunch.images / 16.0).astype(np.float32)[..., np.newaxis]
    return Source(images, bunch.target, class_names=tuple("0123456789"))


READER = Reader("digits", "1797 handwritten digits, 8x8x1, 10 classes (scikit-learn)", read_digits)
