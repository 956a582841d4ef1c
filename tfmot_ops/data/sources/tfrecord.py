"""Files of TFRecords that hold `tf.train.Example`, read by index.

`tfrecord:<glob>[?features=<json>][&test=<glob>]`

A JSON file, `features.json` beside the first file unless `features` names it, describes the features in the words of
`tf.io.FixedLenFeature`:

    {"features": {"image": {"shape": [32, 32, 3], "dtype": "uint8", "encoding": "jpeg", "role": "input"},
                  "label": {"shape": [], "dtype": "int64", "role": "target"}},
     "class_names": ["cat", "dog"]}

- `shape` and `dtype` are those of one sample, as the model gets it.
- `encoding` says how a feature's bytes become numbers: `raw`, the numbers one after the other, little-endian; `jpeg` or
  `png`, an image [H, W, 1 or 3] of uint8, resized where the file's size is another. Without it, the feature is a list
  of float32, int64 or string, as Example has them.
- `role` is `input` or `target`; without a target the input is its own (reconstruction).
- `name` is the model's name for it, the feature's own unless given. One input, or one target, without a name is an
  array; several are arrays by name.

Only the records' headers are read at first: a file that was cut off is refused. Sets of up to 256 MB are also read once
with their checksums. `test` gives a test set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from tfmot_ops.contract.refusal import refusal
from tfmot_ops.data.columns import Array, Lazy
from tfmot_ops.data.sources.fingerprint import fingerprint, is_small
from tfmot_ops.data.sources.pictures import Decoder
from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.record_files import Records, broken, check_contents, index_records, read_record
from tfmot_ops.data.sources.source import Reader, Samples, Source
from tfmot_ops.errors import SpecError
from tfmot_ops.system import files

FORM = "tfrecord:<glob>"
_SIDECAR = "features.json"
#: Largest JSON file, in bytes.
_MOST_SIDECAR_BYTES = 2**20
#: Most axes and values of one sample of a feature: protobuf's messages, and so records, have less than 2 GB.
_MOST_AXES, _MOST_VALUES = 8, 2**31 - 1
#: Field of an Example's feature that holds numbers or bytes of a type.
_LISTS = {"float32": "float_list", "int64": "int64_list", "string": "bytes_list"}


class Feature(BaseModel):
    """One feature of the records, see this module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, ...]
    dtype: Literal["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "string"]
    encoding: Literal["raw", "jpeg", "png"] | None = None
    role: Literal["input", "target"]
    name: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _can_be_read(self) -> Feature:
        if any(size < 1 for size in self.shape):
            raise ValueError("a shape of sizes of at least 1")
        if len(self.shape) > _MOST_AXES or math.prod(self.shape) > _MOST_VALUES:
            raise ValueError(f"a shape of at most {_MOST_AXES} axes and {_MOST_VALUES:,} values")
        if self.encoding is None and self.dtype not in _LISTS:
            raise ValueError("without an encoding, the dtype float32, int64 or string")
        if self.encoding == "raw" and self.dtype == "string":
            raise ValueError("numbers for the encoding raw")
        if self.encoding in {"jpeg", "png"} and (
            self.dtype != "uint8" or len(self.shape) != 3 or self.shape[2] not in {1, 3}  # noqa: PLR2004 - [H, W, C]
        ):
            raise ValueError(f"shape [H, W, 1 or 3] and dtype uint8 for the encoding {self.encoding}")
        return self

    @property
    def numpy_dtype(self) -> Any:
        """Type of the array's values; texts are objects of type bytes."""
        return np.dtype(object) if self.dtype == "string" else np.dtype(self.dtype)


class Sidecar(BaseModel):
    """What the JSON file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: dict[str, Feature] = Field(min_length=1)
    class_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_inputs(self) -> Sidecar:
        names = [(each.role, each.name or key) for key, each in self.features.items()]
        if not any(role == "input" for role, _ in names) or len(set(names)) != len(names):
            raise ValueError("at least one feature of the role input, and different names for those of one role")
        return self


def read_tfrecord(text: str) -> Source:
    """The samples of the records as the JSON file describes them: columns [N, ...] of its shapes."""
    query = Query(FORM, text, ("features", "test"))
    paths = _paths(query.location)
    sidecar_path = Path(query.text("features") or paths[0].parent / _SIDECAR)
    sidecar = _sidecar(sidecar_path)
    test = query.text("test")
    test_paths = [] if test is None else _paths(test)
    if set(paths) & set(test_paths):
        query.refuse("test", f"files that {query.location} does not name, too")
    every = [*paths, *test_paths]
    records, test_records = _indexed(paths), _indexed(test_paths)
    small = is_small(every)
    if small:
        check_contents(every)
    x, y = _columns(sidecar, paths, records)
    given: dict[str, Any] = {}
    if test is not None:
        given["x_test"], given["y_test"] = _columns(sidecar, test_paths, test_records)
    digest, over = fingerprint([sidecar_path, *every], paths[0].parent, query.given())
    record: dict[str, JsonValue] = {
        "files": len(every),
        "records": [len(records), len(test_records)],
        "checked": "every record's checksum" if small else "every record's length",
        "fingerprint_of": over,
    }
    return Source(
        x,
        y,
        class_names=sidecar.class_names,
        task="reconstruction" if y is None else None,
        record=record,
        fingerprint=digest,
        **given,
    )


def _paths(pattern: str) -> list[Path]:
    paths = [Path(name) for name in sorted(glob(pattern, recursive=True)) if Path(name).is_file()]  # noqa: PTH207 - any root
    if not paths:
        raise SpecError(
            f"no file fits {pattern}",
            required="the path of a file of TFRecords, or a pattern with * or ? for several",
            received="no file",
            remedy="check the path and the pattern",
        )
    return paths


def _indexed(paths: Sequence[Path]) -> Records:
    records = index_records(paths) if paths else np.empty((0, 4), np.int64)
    if paths and not len(records):
        raise broken(paths[0], 0, "no record in any file")
    return records


def _sidecar(path: Path) -> Sidecar:
    remedy = "describe the features: shape, dtype, role, and encoding for bytes; ?features= names another file"
    try:
        return Sidecar.model_validate_json(files.read_limited(path, _MOST_SIDECAR_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{path} cannot be read",
            required="a JSON file that describes the records' features",
            received=f"{type(error).__name__}: {error}",
            remedy=remedy,
        ) from error
    except ValidationError as error:
        raise refusal(str(path), error, remedy) from error


def _columns(sidecar: Sidecar, paths: list[Path], records: Records) -> tuple[Samples, Samples | None]:
    """The inputs, and the targets where there are any."""
    parts: dict[str, dict[str, Any]] = {"input": {}, "target": {}}
    named = {"input": False, "target": False}
    for key, feature in sidecar.features.items():
        reader = _Values(key, feature, paths)
        # A row is an item; rows of an array are indexed and cut as those of a list are.
        rows = cast("Sequence[Records]", records)
        parts[feature.role][feature.name or key] = Lazy(rows, reader.read, feature.shape, feature.numpy_dtype)
        named[feature.role] |= feature.name is not None
    x, y = (next(iter(part.values())) if len(part) == 1 and not named[role] else part for role, part in parts.items())
    return x, None if parts["target"] == {} else y


@dataclass(frozen=True)
class _Values:
    """Reads one feature of records."""

    key: str
    feature: Feature
    paths: list[Path]

    def read(self, row: Records) -> Array:
        """The feature of one record, of the feature's shape."""
        import tensorflow as tf
        from google.protobuf.message import DecodeError

        try:
            example = tf.train.Example.FromString(read_record(self.paths, row))
            return self._value(example.features.feature, row)
        except (DecodeError, ValueError) as error:
            raise broken(self.paths[int(row[0])], int(row[1]), str(error)) from error

    def _value(self, features: Any, row: Records) -> Array:
        feature = self.feature
        if self.key not in features:
            raise ValueError(f"no feature {self.key}; there are {', '.join(sorted(features)) or 'none'}")
        field = _LISTS["string" if feature.encoding else feature.dtype]
        kind = features[self.key].WhichOneof("kind")
        if kind != field:
            raise ValueError(f"the feature {self.key} is a {kind}, where dtype and encoding say {field}")
        values = getattr(features[self.key], field).value
        if feature.encoding in {"jpeg", "png"}:
            height, width, channels = feature.shape
            name = f"the image {self.key} in record {row[1]} of {self.paths[int(row[0])]}"
            return Decoder((height, width), channels).decode(b"".join(values), name)
        if feature.encoding == "raw":
            array: Array = np.frombuffer(b"".join(values), feature.numpy_dtype.newbyteorder("<"))
        else:
            array = np.array(list(values), feature.numpy_dtype)
        if array.size != int(np.prod(feature.shape)):
            raise ValueError(f"{array.size} values of {self.key}, where the shape {list(feature.shape)} is asked for")
        return array.reshape(feature.shape)


READER = Reader(
    FORM,
    "files of TFRecords, whose features a JSON file describes; ?features=<json>, &test=<glob>",
    read_tfrecord,
)
