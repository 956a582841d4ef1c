"""TFLite's sparse encoding of pruned weights: what it does to a file's size and speed, refusals included."""

from __future__ import annotations

from dataclasses import dataclass

from tfmot_ops.core.keras.private import mlir_sparsify
from tfmot_ops.core.measure.latency import Latency, latency_ms
from tfmot_ops.core.tflite.profile import gzip_size
from tfmot_ops.errors import ArtifactError, ExportError


@dataclass(frozen=True)
class Encoded:
    """One form of a file.

    Attributes:
        size_bytes: size of the file.
        gzip_bytes: size of the file after gzip.
        xnnpack: latency with XNNPACK; None when it refuses the file, and then no application can run it as usual.
        builtin: latency with TFLite's own kernels; None when they refuse it.
        refusal: what the runtime said where a latency is None.
    """

    size_bytes: int
    gzip_bytes: int
    xnnpack: Latency | None
    builtin: Latency | None
    refusal: str = ""


@dataclass(frozen=True)
class SparseEncoding:
    """A file as it is, and with its sparse weights encoded as such."""

    dense: Encoded
    sparse: Encoded


def encode_sparse(data: bytes) -> bytes:
    """Store weights with enough zeros without them, as the converter does for `Optimize.EXPERIMENTAL_SPARSITY`.

    The converter decides which weights gain by it, each with an operation DENSIFY that unpacks it again.

    Args:
        data: a TFLite file.

    Returns:
        The file with the same outputs.

    Raises:
        ExportError: the converter refuses the file.
    """
    try:
        return bytes(mlir_sparsify(data))
    except Exception as error:  # the wrapped C++ raises whatever it has
        raise ExportError(
            "the TFLite converter refused to encode the file",
            required="a TFLite file whose operations the converter reads",
            received=f"{type(error).__name__}: {error}",
            remedy="use the file without the sparse encoding",
        ) from error


def compare_sparse_encoding(data: bytes, threads: int = 1, runs: int = 50) -> SparseEncoding:
    """Measure a pruned file with and without the sparse encoding.

    Args:
        data: a TFLite file.
        threads: CPU threads.
        runs: timed runs of each form and each set of kernels.

    Raises:
        ArtifactError: the bytes are no TFLite file.
        ExportError: the converter refuses it.
    """
    dense = _measure(data, threads, runs)
    return SparseEncoding(dense=dense, sparse=_measure(encode_sparse(data), threads, runs))


def _measure(data: bytes, threads: int, runs: int) -> Encoded:
    found: dict[bool, Latency | None] = {}
    refusals = []
    for xnnpack in (True, False):
        try:
            found[xnnpack] = latency_ms(data, threads, runs, xnnpack=xnnpack)
        except ArtifactError as error:
            found[xnnpack] = None
            refusals.append(error.received)
    return Encoded(
        size_bytes=len(data),
        gzip_bytes=gzip_size(data),
        xnnpack=found[True],
        builtin=found[False],
        refusal="; ".join(refusals),
    )
