"""Audio: WAV files of every kind, the front end against TensorFlow's, broken files."""

from __future__ import annotations

import time
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy.io import wavfile

from tfmot_ops.data.columns import Lazy
from tfmot_ops.data.sources.by_name import read_source
from tfmot_ops.data.sources.front_end import FrontEnd, factors, resampled
from tfmot_ops.data.sources.source import Source
from tfmot_ops.data.sources.wav import read_wav
from tfmot_ops.errors import SpecError

RATE = 16000
TONE = (0.5 * np.sin(2 * np.pi * 440.0 * np.arange(RATE) / RATE)).astype(np.float32)
NOISE = np.random.default_rng(0).uniform(-0.9, 0.9, RATE).astype(np.float32)
# The rates of usual files, and two without a common factor, whose filter would have 15 million numbers.
RATES = [8000, 11025, 16000, 22050, 44100, 48000, 96000, 767_999]
OPTIONS = "rate, seconds, front, mels, window_ms, hop_ms, coefficients, skip"


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, samples)
    return path


def write_24_bits(path: Path, samples: np.ndarray) -> Path:
    integers = np.round(samples * (1 << 23)).astype("<i4")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 3, RATE, len(samples), "NONE", ""))
        file.writeframes(integers.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
    return path


def two_classes(folder: Path) -> Path:
    for index in range(2):
        write(folder / "tone" / f"{index}.wav", TONE)
        write(folder / "noise" / f"{index}.wav", NOISE)
    return folder


def read(name: str) -> Source:
    return read_source(f"audio:{name}", 0)


def refused(name: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read(name)
    assert caught.value.required
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("samples", "tolerance"),
    [
        (np.round(NOISE * 128 + 128).astype(np.uint8), 1 / 128),
        (np.round(NOISE * 32768).astype(np.int16), 1 / 32768),
        (np.round(NOISE.astype(np.float64) * 2**31).astype(np.int32), 1e-7),
        (NOISE, 0.0),
        (NOISE.astype(np.float64), 0.0),
    ],
    ids=["8 bits", "16 bits", "32 bits", "float", "double"],
)
def test_samples_of_every_kind_are_read(tmp_path: Path, samples: np.ndarray, tolerance: float):
    read_samples, rate = read_wav(write(tmp_path / "a.wav", samples))
    assert (read_samples.dtype, rate) == (np.float32, RATE)
    assert np.abs(read_samples - NOISE).max() <= tolerance


def test_24_bits_are_read(tmp_path: Path):
    samples, _ = read_wav(write_24_bits(tmp_path / "a.wav", NOISE))
    assert np.abs(samples - NOISE).max() <= 1 / (1 << 23)


def test_the_extensible_header_and_other_chunks_are_read(tmp_path: Path):
    data = np.round(NOISE * 32768).astype("<i2").tobytes()
    form = (0xFFFE).to_bytes(2, "little") + (1).to_bytes(2, "little") + RATE.to_bytes(4, "little")
    form += (2 * RATE).to_bytes(4, "little") + (2).to_bytes(2, "little") + (16).to_bytes(2, "little")
    form += (22).to_bytes(2, "little") + bytes(6) + (1).to_bytes(2, "little") + bytes(14)
    chunks = b"LIST" + (3).to_bytes(4, "little") + b"abc\0"
    chunks += b"fmt " + len(form).to_bytes(4, "little") + form
    unknown = b"data" + b"\xff\xff\xff\xff"  # of a writer that could not know the length
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + bytes(4) + b"WAVE" + chunks + unknown + data)
    samples, rate = read_wav(path)
    assert (len(samples), rate) == (RATE, RATE)
    assert np.abs(samples - NOISE).max() <= 1 / 32768


def test_channels_are_averaged_and_rates_converted(tmp_path: Path):
    write(tmp_path / "a" / "0.wav", np.stack([TONE, -TONE, 3 * NOISE], axis=1))
    low = (0.5 * np.sin(2 * np.pi * 440.0 * np.arange(8000) / 8000)).astype(np.float32)
    write(tmp_path / "a" / "1.wav", low, 8000)
    samples = read(f"{tmp_path}?front=none").x[:]
    assert samples.shape == (2, RATE, 1)
    assert np.allclose(samples[0, :, 0], NOISE, atol=1e-6)
    assert np.abs(samples[1, 200:-200, 0] - TONE[200:-200]).max() < 0.005


def test_clips_are_cut_and_padded(tmp_path: Path):
    write(tmp_path / "a" / "0.wav", TONE)
    write(tmp_path / "a" / "1.wav", TONE[:1000])
    samples = read(f"{tmp_path}?front=none&seconds=0.25").x[:]
    assert samples.shape == (2, 4000, 1)
    assert np.array_equal(samples[0, :, 0], TONE[:4000])
    assert np.array_equal(samples[1, :, 0], np.pad(TONE[:1000], (0, 3000)))


def of_tensorflow(samples: np.ndarray, mels: int, window: int, hop: int) -> tf.Tensor:
    magnitudes = tf.abs(tf.signal.stft(samples, window, hop))
    weights = tf.signal.linear_to_mel_weight_matrix(mels, magnitudes.shape[-1], RATE, 80.0, RATE / 2)
    return tf.math.log(magnitudes @ weights + 1e-6)


def test_log_mel_spectrograms_are_those_of_tensorflow(tmp_path: Path):
    source = read(two_classes(tmp_path))
    assert isinstance(source.x, Lazy)
    assert (source.x.shape, source.x.dtype) == ((4, 49, 40, 1), np.float32)
    assert np.abs(source.x[[0]][0, ..., 0] - of_tensorflow(NOISE, 40, 480, 320)).max() < 1e-3
    assert (source.class_names, list(source.y), source.task) == (("noise", "tone"), [0, 0, 1, 1], "classification")
    assert source.record == {
        "front_end": {
            "front": "logmel",
            "rate_hz": 16000,
            "samples": 16000,
            "window": 480,
            "hop": 320,
            "fft": 512,
            "mels": 40,
            "lowest_hz": 80.0,
            "highest_hz": 8000.0,
            "log_floor": 1e-6,
        },
        "fingerprint_of": "names and contents",
    }


def test_mfccs_are_those_of_tensorflow(tmp_path: Path):
    source = read(f"{two_classes(tmp_path)}?front=mfcc&mels=20&window_ms=40&hop_ms=10&coefficients=8")
    expected = tf.signal.mfccs_from_log_mel_spectrograms(of_tensorflow(NOISE, 20, 640, 160))[:, :8]
    assert source.x.shape == (4, 97, 8, 1)
    assert np.abs(source.x[[0]][0, ..., 0] - expected).max() < 1e-3
    assert source.record["front_end"]["coefficients"] == 8


def test_features_are_the_same_in_every_thread_and_are_kept(tmp_path: Path):
    column = read(two_classes(tmp_path)).x
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: column[:], range(4))
    assert all(np.array_equal(each, first) for each in others)
    for path in tmp_path.rglob("*.wav"):
        path.unlink()
    assert np.array_equal(column[:], first)


def test_train_and_test_folders_give_a_test_set(tmp_path: Path):
    two_classes(tmp_path / "train")
    two_classes(tmp_path / "test")
    source = read(tmp_path)
    assert (len(source.x), len(source.x_test)) == (4, 4)
    assert list(source.y_test) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"", "ValueError: no RIFF WAVE header"),
        (b"RIFF\0\0\0\0WAVE", "ValueError: no samples: the chunk data is missing"),
        ("cut", "ValueError: 31900 bytes of samples, where the header says 32000"),
        ("law", "ValueError: format 7 of 16 bits"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes | str, received: str):
    path = two_classes(tmp_path) / "tone" / "1.wav"
    whole = write(path, np.round(TONE * 32767).astype(np.int16)).read_bytes()
    damaged = {"cut": whole[:-100], "law": whole[:20] + b"\x07\0" + whole[22:]}
    path.write_bytes(content if isinstance(content, bytes) else damaged[content])
    error = refused(tmp_path)
    assert error.summary == f"{path} cannot be decoded"
    assert error.received == received
    source = read(f"{tmp_path}?skip=0.25")
    assert (len(source.x), source.record["skipped"], source.record["skipped_files"]) == (3, 1, [str(path)])


def test_a_file_that_breaks_later_is_named(tmp_path: Path):
    source = read(two_classes(tmp_path))
    (tmp_path / "tone" / "1.wav").write_bytes(b"")
    with pytest.raises(SpecError, match=f"{tmp_path / 'tone' / '1.wav'} cannot be decoded"):
        source.x[:]


@pytest.mark.parametrize(
    ("options", "required"),
    [
        ("front=cqt", "one of logmel, mfcc, none"),
        ("rate=0", "a whole number of at least 1"),
        ("seconds=0", "a number above 0"),
        ("seconds=0.00001", "at least one sample at 16000 Hz"),
        ("seconds=0.02", "a frame of at least 2 samples at 16000 Hz, no longer than the clip (320)"),
        ("hop_ms=0.001", "at least one sample at 16000 Hz"),
        ("front=mfcc&coefficients=41", "at most mels=40"),
        ("mels=400", "so few bands that each holds a frequency of a frame of 480 samples at 16000 Hz"),
        ("bits=8", f"{OPTIONS}, each at most once, as ?name=value&name=value"),
    ],
)
def test_options_that_cannot_be_read_are_refused(tmp_path: Path, options: str, required: str):
    assert refused(f"{two_classes(tmp_path)}?{options}").required == required


def test_a_folder_without_classes_is_refused(tmp_path: Path):
    write(tmp_path / "0.wav", TONE)
    error = refused(tmp_path)
    assert error.required == "one sub-folder per class, each with WAV files (.wav)"
    assert error.received == "0 sub-folders, 0 of them without WAV files"


@pytest.mark.parametrize("rate", RATES)
def test_a_long_file_is_read_only_as_far_as_its_clip_reaches(tmp_path, rate):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, 3 * rate).astype(np.float32)
    path = write(tmp_path / "long.wav", samples, rate)
    end = FrontEnd(RATE, RATE, "logmel", 40, 480, 320, 10)
    read, _ = read_wav(path, end.frames)
    assert rate <= len(read) < 1.1 * rate
    np.testing.assert_allclose(end.features(read, rate), end.features(samples, rate), atol=1e-4)


def test_the_filter_between_two_rates_is_short():
    started = time.process_time()
    tone = np.sin(2 * np.pi * 440.0 * np.arange(767_999) / 767_999).astype(np.float32)
    found = resampled(tone, 767_999, RATE)
    assert time.process_time() - started < 2.0  # 15 s with the exact ratio
    np.testing.assert_allclose(found[100:15_900], 2 * TONE[100:15_900], atol=0.02)
    assert [factors(rate, RATE) for rate in RATES[:4]] == [(2, 1), (640, 441), (1, 1), (320, 441)]
