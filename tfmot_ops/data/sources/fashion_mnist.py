"""Fashion-MNIST: the four IDX files of Debian's package, of a folder, or downloaded.

`fashion_mnist?normal=<label or class>` is for reconstruction: one class alone to learn from, all classes to tell apart.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.errors import SpecError, StepFailedError
from tfmot_ops.system.environment import FASHION_MNIST

#: Where the Debian package `dataset-fashion-mnist` puts its files.
_FASHION_MNIST_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_MNIST_REMEDY = f"install dataset-fashion-mnist (Debian), or point {FASHION_MNIST.name} at the files' folder"
_FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_fashion_mnist(text: str = "") -> Source:
    """60000 training and 10000 test images [N, 28, 28] of uint8 with labels 0 to 9.

    With the option `normal`: the training images of one class, without labels, and the test images with 0 for that
    class and 1 for the others.
    """
    query = Query.of_name("fashion_mnist", text, ("normal",))
    normal = _label(query)
    source = _read_all()
    if normal is None:
        return source
    y, y_test = np.asarray(source.y), np.asarray(source.y_test)
    if normal not in y:
        query.refuse("normal", "a class of which there are training images")
    return Source(
        np.asarray(source.x)[y == normal],
        None,
        source.x_test,
        (y_test != normal).astype(np.int64),
        task="reconstruction",
        record={"normal": _FASHION_MNIST_CLASSES[normal]},
    )


def _label(query: Query) -> int | None:
    """The label of the option `normal`, a label or a class's name; None where it is not written."""
    normal = query.text("normal")
    if normal is None:
        return None
    names = {name: label for label, name in enumerate(_FASHION_MNIST_CLASSES)}
    names |= {str(label): label for label in names.values()}
    if normal not in names:
        query.refuse("normal", "a label from 0 to 9, or one of " + ", ".join(_FASHION_MNIST_CLASSES))
    return names[normal]


def _read_all() -> Source:
    folder = FASHION_MNIST.get()
    if folder:
        return _read_idx_folder(Path(folder))
    if _FASHION_MNIST_DEBIAN.is_dir():
        return _read_idx_folder(_FASHION_MNIST_DEBIAN)
    from tfmot_ops.core.keras.pinned import keras

    try:
        (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # keras.utils.get_file raises a bare Exception when the download fails
        raise StepFailedError(
            "the download of fashion_mnist failed",
            required="the network, or the four IDX files on this machine",
            received=f"{type(error).__name__}: {error}",
            remedy=_FASHION_MNIST_REMEDY,
        ) from error
    return Source(x, y, x_test, y_test, _FASHION_MNIST_CLASSES)


def _read_idx_folder(folder: Path) -> Source:
    """Read the four files of the MNIST family, as distributed: gzip, big-endian IDX, uint8."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    x, y, x_test, y_test = (_read_idx(folder / f"{name}-ubyte.gz", int(name[-1])) for name in names)
    return Source(x, y, x_test, y_test, _FASHION_MNIST_CLASSES)


def _read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes())
        # Two zero bytes, type code 8 for uint8, the rank, then as many sizes as uint32.
        shape = np.frombuffer(content, ">u4", content[3], 4)
        data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
        return data.reshape(shape[:rank])
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise SpecError(
            f"{path} cannot be read",
            required=f"a gzip file of uint8 IDX data of rank {rank}",
            received=f"{type(error).__name__}: {error}",
            remedy=_FASHION_MNIST_REMEDY,
        ) from error


READER = Reader(
    "fashion_mnist",
    "70000 articles of clothing, 28x28x1, 10 classes; ?normal=<class> to reconstruct one class",
    read_fashion_mnist,
)
