"""TFLite's sparse encoding of pruned weights: the size and latency of a file with and without it."""

from __future__ import annotations

from dataclasses import dataclass

from tfmot_ops.core.keras.private import mlir_sparsify
from tfmot_ops.core.measure.latency import Latency, latency_ms
from tfmot_ops.core.tflite.profile import gzip_size
from tfmot_ops.errors import ArtifactError, ExportError


@dataclass(frozen=True)
class Encoded:
    """Measurements of a file with or without sparse encoding.

    Attributes:
        size_bytes: size of the file in bytes.
        gzip_bytes: size in bytes after gzip.
        xnnpack: latency with XNNPACK; None if XNNPACK cannot run the file, and then no application with TFLite's
            default delegate can.
        builtin: latency with TFLite's built-in kernels; None if they cannot run the file.
        refusal: the runtime's message if a latency is None, otherwise empty.
    """

    size_bytes: int
    gzip_bytes: int
    xnnpack: Latency | None
    builtin: Latency | None
    refusal: str = ""


@dataclass(frozen=True)
class SparseEncoding:
    """Measurements of a file without (`dense`) and with (`sparse`) TFLite's sparse encoding."""

    dense: Encoded
    sparse: Encoded


def encode_sparse(data: bytes) -> bytes:
    """Store only the nonzero values of sparse weights, as the converter does for `Optimize.EXPERIMENTAL_SPARSITY`.

    The converter decides which weights become smaller this way, and adds a DENSIFY operation that unpacks each.

    Args:
        data: a TFLite file.

    Returns:
        A TFLite file with the same outputs.

    Raises:
        ExportError: the converter refuses the file.
    """
    try:
        return bytes(mlir_sparsify(data))
    except Exception as error:  # the C++ converter raises various classes
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
        threads: CPU threads of the interpreter.
        runs: timed runs, for each file with XNNPACK and with TFLite's built-in kernels.

    Raises:
        ArtifactError: the bytes are no TFLite file.
        ExportError: the converter refuses the file.
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
