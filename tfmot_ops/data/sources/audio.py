"""WAV files, one sub-folder a class, turned into features when they are read.

`audio:<folder>[?rate=16000&seconds=1&front=logmel|mfcc|none&mels=40&window_ms=30&hop_ms=20&coefficients=10&skip=0.01]`

Channels are averaged, the samples resampled to `rate` Hz, cut or padded with zeros at the end to `seconds`, and turned
into features: `logmel`, the logarithm of `mels` bands over frames of `window_ms` that begin every `hop_ms`; `mfcc`, the
first `coefficients` of their cosine transform; `none`, the samples. The result's record has all of these parameters,
as whoever uses the model has to compute the same. A folder whose only sub-folders are `train` and `test` has a test
set, each of the two with the same class folders.

The header and the length of every file are checked before anything is trained. `skip` is the share of broken files
that may be left out, named and counted. A file is read only as far as its clip reaches.
Features are computed once and kept, up to `KEPT_BYTES` of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from tfmot_ops.data.columns import Array, Lazy
from tfmot_ops.data.sources.fingerprint import fingerprint
from tfmot_ops.data.sources.folders import Labelled, check_classes_left, list_classes, without_broken
from tfmot_ops.data.sources.front_end import FLOOR, LOWEST_HZ, FrontEnd
from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.data.sources.wav import HIGHEST_RATE, WAV, problem_of_header, read_wav

FORM = "audio:<folder>"
OPTIONS = ("rate", "seconds", "front", "mels", "window_ms", "hop_ms", "coefficients", "skip")
#: Most samples of a clip, and of its frames together, which overlap: 128 MB. Most bands.
_MOST_SAMPLES, _MOST_MELS = 2**25, 1024
#: Bytes of features that are kept in memory; those of 80,000 clips of a second, as the defaults make them.
KEPT_BYTES = 512 * 1024 * 1024


def read_audio(text: str) -> Source:
    """Features float32 [N, time, mels or coefficients, 1], or samples [N, time, 1], and labels int64 [N]."""
    query = Query(FORM, text, OPTIONS)
    end = _front_end(query)
    folder = Path(query.location)
    listing = list_classes(folder, WAV)
    paths = [path for path, _ in [*listing.train, *(listing.test or [])]]
    broken, skipped = without_broken(paths, problem_of_header, WAV, query.number("skip", 0.0, most=1.0))
    train = [each for each in listing.train if each[0] not in broken]
    check_classes_left(train, listing)
    test = [each for each in listing.test or [] if each[0] not in broken]
    features = _Features(end)
    given = features.columns(train, "")
    if listing.test is not None:
        given |= features.columns(test, "_test")
    digest, over = fingerprint([path for path, _ in [*train, *test]], folder, query.given())
    record: dict[str, JsonValue] = {"front_end": _parameters(end), "fingerprint_of": over}
    return Source(
        class_names=listing.class_names, task="classification", record=record | skipped, fingerprint=digest, **given
    )


def _front_end(query: Query) -> FrontEnd:
    rate = query.integer("rate", 16000, most=HIGHEST_RATE)
    samples = round(query.number("seconds", 1.0) * rate)
    kind = query.choice("front", ("logmel", "mfcc", "none"), "logmel")
    window = round(query.number("window_ms", 30.0) * rate / 1000.0)
    hop = round(query.number("hop_ms", 20.0) * rate / 1000.0)
    mels = query.integer("mels", 40, most=_MOST_MELS)
    coefficients = query.integer("coefficients", 10)
    if samples < 1:
        query.refuse("seconds", f"at least one sample at {rate} Hz")
    if samples > _MOST_SAMPLES:
        query.refuse("seconds", f"at most {_MOST_SAMPLES:,} samples in a clip")
    if kind != "none" and not 1 < window <= samples:
        query.refuse("window_ms", f"a frame of at least 2 samples at {rate} Hz, no longer than the clip ({samples})")
    if hop < 1:
        query.refuse("hop_ms", f"at least one sample at {rate} Hz")
    if kind != "none" and (samples // hop + mels) * window > _MOST_SAMPLES:
        query.refuse("window_ms", f"at most {_MOST_SAMPLES:,} samples in all frames of a clip")
    if kind == "mfcc" and coefficients > mels:
        query.refuse("coefficients", f"at most mels={mels}")
    end = FrontEnd(rate, samples, kind, mels, window, hop, coefficients)
    if kind != "none" and not end.bands.any(axis=0).all():
        query.refuse("mels", f"so few bands that each holds a frequency of a frame of {window} samples at {rate} Hz")
    return end


def _parameters(end: FrontEnd) -> dict[str, JsonValue]:
    """What somebody has to know to compute the same features, lengths in samples."""
    parameters: dict[str, JsonValue] = {"front": end.kind, "rate_hz": end.rate, "samples": end.samples}
    if end.kind != "none":
        parameters |= {"window": end.window, "hop": end.hop, "fft": end.fft, "mels": end.mels}
        parameters |= {"lowest_hz": LOWEST_HZ, "highest_hz": end.rate / 2.0, "log_floor": FLOOR}
    if end.kind == "mfcc":
        parameters["coefficients"] = end.coefficients
    return parameters


class _Features:
    """Features of files, kept once they are computed. Two threads that compute the same ones find the same."""

    def __init__(self, end: FrontEnd) -> None:
        self._end = end
        self._kept: dict[Path, Array] = {}
        self._most = KEPT_BYTES // (4 * int(np.prod(end.shape)))

    def read(self, path: Path) -> Array:
        """The features of a file."""
        features = self._kept.get(path)
        if features is None:
            features = self._end.features(*read_wav(path, self._end.frames))
            if len(self._kept) < self._most:
                self._kept[path] = features
        return features

    def columns(self, files: list[Labelled], part: str) -> dict[str, Any]:
        """The columns x and y of labelled files."""
        x = Lazy([path for path, _ in files], self.read, self._end.shape, np.float32)
        return {f"x{part}": x, f"y{part}": np.array([label for _, label in files], np.int64)}


READER = Reader(
    FORM,
    "WAV files in one sub-folder per class, as log-mel spectrograms; ?front=mfcc or none, ?rate=, ?seconds=",
    read_audio,
)
