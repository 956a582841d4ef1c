"""Front ends of audio: from samples over time to log-mel spectrograms or MFCCs.

Computed by NumPy and SciPy as `tf.signal` computes them (`stft`, `linear_to_mel_weight_matrix`,
`mfccs_from_log_mel_spectrograms`), in any thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
#: Added to each band before the logarithm, so that silence is finite.
FLOOR = 1e-6
#: Lowest frequency of the bands in Hz; it and the floor are those of TensorFlow's example of MFCCs.
LOWEST_HZ = 80.0
#: Largest factor by which a rate is raised or lowered, and samples on each side of one that scipy's filter reads for
#: each time that the larger factor holds the smaller.
_MOST_FACTOR, _FILTER = 2**16, 10


@dataclass(frozen=True)
class FrontEnd:
    """Turns samples at any rate into features of one shape.

    Attributes:
        rate: samples a second after resampling, in Hz.
        samples: length after cutting, or padding with zeros at the end.
        kind: `logmel`, `mfcc`, or `none` for the samples themselves.
        mels: number of bands.
        window: length of a frame in samples.
        hop: samples from a frame's begin to the next one's.
        coefficients: number of MFCCs, the first ones.
        bands: weights [bins, mels] of the frequencies in each band.
    """

    rate: int
    samples: int
    kind: str
    mels: int
    window: int
    hop: int
    coefficients: int
    bands: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", mel_bands(self.mels, self.fft // 2 + 1, self.rate))

    @property
    def fft(self) -> int:
        """Length of the Fourier transform: the next power of two from a frame's length on."""
        return 1 << (self.window - 1).bit_length()

    @property
    def shape(self) -> tuple[int, ...]:
        """(time, mels or coefficients, 1) of the features; (time, 1) of samples."""
        if self.kind == "none":
            return self.samples, 1
        frames = 1 + (self.samples - self.window) // self.hop
        return frames, self.mels if self.kind == "logmel" else self.coefficients, 1

    def frames(self, rate: int) -> int:
        """How many samples at `rate` Hz decide the features: those of the clip, and those that the filter reads after.

        A file may be hours long, and is not read beyond them.
        """
        up, down = factors(rate, self.rate)
        return -(-self.samples * down // up) + _FILTER * max(up, down) // up + 2

    def features(self, samples: Floats, rate: int) -> Floats:
        """The features of samples [time] in [-1, 1] at `rate` Hz, of the shape `shape`."""
        wave = np.zeros(self.samples, np.float32)
        given = resampled(samples, rate, self.rate)[: self.samples]
        wave[: len(given)] = given
        if self.kind == "none":
            return wave[:, np.newaxis]
        features = self._log_mel(wave)
        if self.kind == "mfcc":
            from scipy.fft import dct

            # tf.signal scales the DCT-II by 1 / sqrt(2 * mels).
            features = dct(features, type=2, axis=-1)[:, : self.coefficients] / np.sqrt(np.float32(2 * self.mels))
        return features.astype(np.float32)[..., np.newaxis]

    def _log_mel(self, wave: Floats) -> Floats:
        from scipy.fft import rfft

        frames = np.lib.stride_tricks.sliding_window_view(wave, self.window)[:: self.hop]
        # The periodic Hann window, as tf.signal's.
        hann = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(self.window) / self.window)).astype(np.float32)
        magnitudes = np.abs(rfft(frames * hann, self.fft, axis=-1))
        result: Floats = np.log(magnitudes @ self.bands + np.float32(FLOOR))
        return result


def resampled(samples: Floats, rate: int, to_rate: int) -> Floats:
    """Samples [time] at another rate in Hz, low-pass filtered where it is lower."""
    if rate == to_rate:
        return samples
    from scipy.signal import resample_poly

    result: Floats = resample_poly(samples, *factors(rate, to_rate)).astype(np.float32)
    return result


def factors(rate: int, to_rate: int) -> tuple[int, int]:
    """The factors by which the rate is raised and then lowered.

    The filter between both is as long as the larger factor: a file of a few bytes at 767,999 Hz would get one of 15
    million numbers. So rates without a common factor get the nearest ratio of smaller factors, which is off by less
    than one sample in `_MOST_FACTOR`.
    """
    slower, faster = sorted((rate, to_rate))
    exact = Fraction(slower, faster)
    smaller, larger = (exact.limit_denominator(_MOST_FACTOR) or exact).as_integer_ratio()
    return (smaller, larger) if to_rate == slower else (larger, smaller)


def mel_bands(mels: int, bins: int, rate: int) -> Floats:
    """Weights [bins, mels] of triangular bands, evenly spaced on HTK's mel scale up to half the rate."""

    def mel(frequency: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 1127.0 * np.log1p(frequency / 700.0)

    lowest, highest = mel(np.array([LOWEST_HZ, rate / 2.0]))
    edges = np.linspace(lowest, highest, mels + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    places = mel(np.linspace(0.0, rate / 2.0, bins))[1:, np.newaxis]  # without the constant part
    rising, falling = (places - lower) / (centre - lower), (upper - places) / (upper - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    return np.pad(weights, [[1, 0], [0, 0]]).astype(np.float32)
