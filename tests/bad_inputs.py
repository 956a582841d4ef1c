"""Bad inputs of every kind: what reads them, how each is made in a folder, and the error that has to refuse it."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bad_models import DEEP, MODELS, Bad, bomb, file_of, folder_of, link, pipe

from tfmot_ops import core
from tfmot_ops.cli.execute import read_spec
from tfmot_ops.contract import Artifact
from tfmot_ops.data import load_dataset
from tfmot_ops.models import build_model
from tfmot_ops.recipes.files import read_recipe, read_training
from tfmot_ops.runners import check_places
from tfmot_ops.store import fetch, put
from tfmot_ops.sweep.judge.expected import read_expected
from tfmot_ops.tracking.client import connect

SAMPLES, LABELS = np.zeros((60, 4, 4, 1), np.float32), np.arange(60) % 3


def _source(folder: Path) -> Path:
    source = folder / "source.h5"
    source.write_bytes(b"x")
    return source


def _artifact(uri: str) -> Artifact:
    return Artifact.model_validate({"uri": uri, "sha256": "0" * 64, "size_bytes": 1, "format": "keras_h5"})


def _parameter(given: dict[str, Any]) -> None:
    fields = {"options": {}, "output_uri": None, "tracking_uri": None}
    written = dict.fromkeys(fields, "{{ params.x }}")
    check_places(fields | given, written)


def _option(name: str, value: str, _: Path) -> dict[str, Any]:
    return {"options": {name: value}}


READERS: dict[str, Callable[[Any, Path], Any]] = {
    "model": lambda path, _: core.load_model(path),
    "fitting model": lambda path, _: build_model(str(path), (4, 4, 1), 3, seed=0),
    "data": lambda name, _: load_dataset(name, seed=0),
    "recipe": lambda path, _: read_recipe(path),
    "plan": lambda path, _: read_training(path),
    "spec": lambda path, _: read_spec(path),
    "expected": lambda path, _: read_expected(path),
    "tflite": lambda data, _: core.profile_tflite(data),
    "output": lambda uri, folder: put(_source(folder), uri, "model", "keras_h5"),
    "artifact": lambda uri, folder: fetch(_artifact(uri), folder / "fetched"),
    "tracking": lambda uri, _: connect(uri, "experiment"),
    "parameter": lambda given, _: _parameter(given),
}


# Data sets.


def _npz(**arrays: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.savez(folder / "a.npz", **({"x": SAMPLES, "y": LABELS} | arrays))
        return f"npz:{folder / 'a.npz'}"

    return make


def _npy(shape: str, kind: str = "<f4") -> bytes:
    """A .npy file whose header says more than it holds."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)


def _lying(data: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        labels = io.BytesIO()
        np.lib.format.write_array(labels, LABELS)
        with zipfile.ZipFile(folder / "a.npz", "w", compression) as archive:
            archive.writestr("x.npy", data)
            archive.writestr("y.npy", labels.getvalue())
        return f"npz:{folder / 'a.npz'}"

    return make


def _named(form: str, make: Callable[[Path], Path]) -> Callable[[Path], str]:
    return lambda folder: form.format(make(folder))


def _images(options: str = "", first: bytes | None = None) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        for name in ("a", "b"):
            (folder / name).mkdir()
            for number in range(6):
                (folder / name / f"{number}.png").write_bytes(_png(4, 4, bytes(4 * 13)))
        if first is not None:
            (folder / "a" / "0.png").write_bytes(first)
        return f"images:{folder}{options}"

    return make


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _audio(options: str = "", rate: int = 8000, channels: int = 1, junk: int = 0) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        data = bytes(800)
        head = struct.pack("<4sI4s", b"RIFF", 836, b"WAVE") + b"junk\0\0\0\0" * junk
        head += struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, channels, rate, 0, 2, 16, b"data", 800)
        for name in ("a", "b"):
            (folder / name).mkdir()
            for number in range(6):
                (folder / name / f"{number}.wav").write_bytes(head + data)
        return f"audio:{folder}{options}"

    return make


def _long_form(folder: Path) -> str:
    """A WAV file whose description of the samples is 2 GB long."""
    name = _audio()(folder)
    with (folder / "a" / "0.wav").open("r+b") as file:
        file.write(b"RIFF\0\0\0\0WAVEfmt " + (2**31).to_bytes(4, "little"))
        file.truncate(2**31)
    return name


def _wide_csv(folder: Path) -> str:
    names = [f"c{number}" for number in range(60_000)]
    (folder / "a.csv").write_text(f"{','.join(names)}\n{','.join(['1'] * len(names))}\n")
    return f"csv:{folder / 'a.csv'}?target=c7"


def _features(shape: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "a.tfrecord").write_bytes(b"")
        described = {"features": {"x": {"shape": shape, "dtype": "float32", "role": "input"}}}
        (folder / "features.json").write_text(json.dumps(described))
        return f"tfrecord:{folder / 'a.tfrecord'}"

    return make


def _label(value: int, kind: Any = np.int64) -> Any:
    labels = LABELS.astype(kind)
    labels[0] = value
    return labels


DATA = {
    "label of 10^9": Bad("data", 2, "labels from 0 to", _npz(y=_label(10**9))),
    "label of 10^6": Bad("data", 2, "without 3, 4, 5", _npz(y=_label(10**6))),
    "label of 10^9 with names": Bad("data", 2, "", _npz(y=_label(10**9), class_names=np.array(["a", "b", "c"]))),
    "label above the names": Bad("data", 2, "named classes", _npz(y=_label(7), class_names=np.array(["a", "b", "c"]))),
    "label above int64": Bad("data", 2, "labels from 0 to", _npz(y=_label(2**63 + 5, np.uint64))),
    "label of the smallest int64": Bad("data", 2, "labels from 0", _npz(y=_label(-(2**63)))),
    "mask with a label of 10^9": Bad(
        "data", 2, "labels from 0 to", _npz(y=np.where(np.arange(960) == 5, 10**9, 0).reshape(60, 4, 4))
    ),
    "samples that are one number": Bad("data", 2, "samples [N, ...]", _npz(x=np.float32(3))),
    "objects": Bad("data", 2, "Object arrays", _npz(x=SAMPLES.astype(object))),
    "complex numbers": Bad("data", 2, "dtype complex", _npz(x=SAMPLES.astype(np.complex64))),
    "shape that is not there, compressed": Bad("data", 2, "says that it has", _lying(_npy("(1000000000000, 4)"))),
    "shape above int64, compressed": Bad("data", 2, "says that it has", _lying(_npy(f"({10**30}, 4)"))),
    "shape above int64, stored": Bad("data", 2, "says that it has", _lying(_npy(f"({10**30}, 4)"), zipfile.ZIP_STORED)),
    "texts of 10^8 characters": Bad("data", 2, "says that it has", _lying(_npy("(200,)", "<U100000000"))),
    "shape below 0": Bad("data", 2, "negative", _lying(_npy("(-5, 4)"))),
    "pickle": Bad("data", 2, "allow_pickle", _lying(_npy("(2,)", "|O"))),
    "npz that expands": Bad("data", 2, "bytes in a file of", _named("npz:{}", bomb("x.npy", ".npz"))),
    "pipe as npz": Bad("data", 2, "a pipe", _named("npz:{}", pipe("a.npz"))),
    "device as npz": Bad("data", 2, "a device", lambda _: "npz:/dev/zero"),
    "folder as npz": Bad("data", 2, "Is a directory", _named("npz:{}", folder_of("a.npz"))),
    "empty npz": Bad("data", 2, "not a zip file", _named("npz:{}", file_of("a.npz", b""))),
    "pipe as csv": Bad("data", 2, "a pipe", _named("csv:{}?target=y", pipe("a.csv"))),
    "device as csv": Bad("data", 2, "a device", lambda _: "csv:/dev/zero?target=y"),
    "image size of 10^5": Bad("data", 2, "an image of at most", _images("?size=100000")),
    "image size of 10^9": Bad("data", 2, "an image of at most", _images("?size=999999999x999999999")),
    "image that expands": Bad("data", 2, "is too large", _images(first=_png(20_000, 20_000, bytes(100)))),
    "image of 2^62 pixels": Bad("data", 2, "too large", _images(first=_png(2**31 - 1, 2**31 - 1, b""))),
    "audio of 10^9 seconds": Bad("data", 2, "in a clip", _audio("?seconds=999999999")),
    "audio at 10^9 Hz": Bad("data", 2, "at most 768000", _audio("?rate=999999999")),
    "audio of 10^9 bands": Bad("data", 2, "at most 1024", _audio("?mels=999999999")),
    "WAV file at 4 GHz": Bad("data", 2, "channels at 4294967295 Hz", _audio(rate=2**32 - 1)),
    "WAV file of 65535 channels": Bad("data", 2, "65535 channels", _audio(channels=65535)),
    "WAV file of 2000 chunks": Bad("data", 2, "no samples", _audio(junk=2000)),
    "WAV file of a long form": Bad("data", 2, "no samples", _long_form),
    "CSV file of 60,000 columns": Bad("data", 2, "at least 10 samples", _wide_csv),
    "header that does not end": Bad("data", 2, "cannot be read", _lying(_npy("(" * 3000))),
    "sizes that are True": Bad("data", 2, "N = 1", _lying(_npy("(True, True)"), zipfile.ZIP_STORED)),
    "record of 10^20 values": Bad("data", 2, "a shape of at most", _features([10**10, 10**10])),
    "record of 100 axes": Bad("data", 2, "a shape of at most", _features([1] * 100)),
}


# Documents, URIs and parameters.

_yaml = partial(file_of, "a.yaml")
_BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


def _cut(place: float) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        data = (folder.parent / "good.tflite").read_bytes()
        return data[: int(len(data) * place)]

    return make


def _spliced(seed: int) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        data, rng = bytearray((folder.parent / "good.tflite").read_bytes()), random.Random(seed)  # noqa: S311 - no secret
        for _ in range(40):
            place = rng.randrange(8, len(data) - 4)
            data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
        return bytes(data)

    return make


DOCUMENTS = {
    **{f"{kind}: pipe": Bad(kind, 2, "a pipe", pipe("a.yaml")) for kind in ("recipe", "plan", "expected")},
    **{f"{kind}: device": Bad(kind, 2, "a device", link("a.yaml", "/dev/zero")) for kind in ("recipe", "expected")},
    **{f"{kind}: YAML bomb": Bad(kind, 2, "references", _yaml(_BOMB)) for kind in ("recipe", "plan", "expected")},
    **{f"{kind}: nested deep": Bad(kind, 2, "nested", _yaml("a: " + "[" * DEEP)) for kind in ("recipe", "plan")},
    "recipe: JSON nested deep": Bad("recipe", 2, "nested", file_of("a.json", '{"name":' + "[" * DEEP)),
    "recipe: number of 5000 digits": Bad("recipe", 2, "", _yaml(f"name: x\nbudget: {{qat_epochs: {'9' * 5000}}}")),
    "recipe: number of 4000 bits": Bad(
        "recipe", 2, "too long", _yaml(f"name: x\nbudget: {{qat_epochs: 0x{'f' * 1000}}}")
    ),
    "recipe: name twice": Bad("recipe", 2, "line 2, column 1", _yaml("name: x\nname: y\n")),
    "recipe: JSON with a name twice": Bad("recipe", 2, "twice", file_of("a.json", '{"name": "x", "name": "y"}')),
    "expected: cell twice": Bad("expected", 2, "twice", _yaml("a: {}\nb: {}\na: {}\n")),
    "recipe: tag": Bad("recipe", 2, "cannot be parsed", _yaml("!!python/object/apply:os.system [x]\n")),
    "recipe: 1 MB": Bad("recipe", 2, "more than", _yaml("name: x\n" + "#" * 2**20)),
    "expected: list": Bad("expected", 2, "a mapping", _yaml("- a\n")),
    "expected: other fields": Bad("expected", 2, "field", _yaml("a: {b: 1}\n")),
    "spec: pipe": Bad("spec", 2, "a pipe", pipe("spec.json")),
    "spec: device": Bad("spec", 2, "a device", lambda _: "/dev/zero"),
    "spec: folder": Bad("spec", 2, "Is a directory", str),
    "spec: nested deep": Bad("spec", 2, "recursion", file_of("spec.json", "[" * DEEP)),
    "spec: 20 MB": Bad("spec", 2, "more than", file_of("spec.json", " " * (20 * 2**20))),
    "spec: variable that is not set": Bad("spec", 2, "no such variable", lambda _: "env:TFMOT_OPS_NOT_THERE"),
    "spec: name with a NUL": Bad("spec", 2, "null", lambda _: "a\0b"),
    "tflite: empty": Bad("tflite", 4, "cannot be read", lambda _: b""),
    "tflite: text": Bad("tflite", 4, "cannot be read", lambda _: b"hello" * 100),
    **{f"tflite: {place:.0%}": Bad("tflite", 4, "", _cut(place)) for place in (0.1, 0.3, 0.5, 0.9, 0.99)},
    **{f"tflite: spliced {seed}": Bad("tflite", 4, "", _spliced(seed)) for seed in range(6)},
    **{
        f"{kind}: {uri}": Bad(kind, 4, words, partial(lambda uri, _: uri, uri))
        for kind in ("output", "artifact")
        for uri, words in {
            "data:,x": "without one place",
            "simplecache::file:///x": "without one place",
            "reference://x": "TypeError",
            "nosuch://x/y": "no file system",
            "s3://": "without one place",
        }.items()
    },
    "output: web page": Bad("output", 4, "NotImplementedError", lambda _: "http://127.0.0.1:1/x"),
    "output: file as folder": Bad("output", 4, "cannot write", lambda folder: str(_source(folder))),
    "artifact: folder": Bad("artifact", 4, "cannot read", lambda folder: str(folder_of("model.h5")(folder))),
    **{
        f"tracking: {uri}": Bad("tracking", 2, "names no MLflow", partial(lambda uri, _: uri, uri))
        for uri in (
            *(
                "databricks",
                "databricks://profile",
                "uc:x",
                "file:x",
                "folder",
                "",
                "foo://x",
                "s3://bucket/x",
                "http://[",
            ),
            *("http://", "sqlite:x", "sqlite://", "sqlite:///", "sqlite:////tmp/a?b/m.db", "sqlite:////tmp/a%20b/m.db"),
        )
    },
    **{
        f"parameter: {name} {value}": Bad(
            "parameter",
            2,
            "the deployment does not let a DAG run",
            partial(lambda given, _: given, {"options": {name: value}}),
        )
        for name, value in (
            *(("model", "/etc/passwd.h5"), ("model", "model.h5"), ("model", ".."), ("model", "/data/../etc/x")),
            *(("dataset", "npz:/etc/a.npz"), ("dataset", "images:/"), ("dataset", "images:/data?labels=/etc/passwd")),
            *(("dataset", "tfrecord:/data/../*"), ("dataset", "csv:~/a.csv"), ("recipe", "/etc/a.yaml")),
            *(("training", "/proc/self/a.json"), ("model", "http://10.0.0.1/m.h5"), ("model", "s3::x://y.h5")),
        )
    },
    "parameter: output": Bad("parameter", 2, "output_uri", lambda _: {"output_uri": "/etc"}),
    "parameter: server": Bad("parameter", 2, "choose an MLflow server", lambda _: {"tracking_uri": "http://10.0.0.1"}),
}
#: All of them, by name.
BAD_INPUTS = MODELS | DATA | DOCUMENTS
