"""Inputs that are changed at random from a seed, and how each ended; `fuzzing.py KIND COUNT SEED` counts the ends.

Whatever the change, reading it ends as a good input, or as an error of this package with exit code 2, 3 or 4.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bad_models import good_files
from untrusted import changed_h5, changed_keras

from tfmot_ops import core
from tfmot_ops.cli.execute import read_spec
from tfmot_ops.errors import TfmotOpsError
from tfmot_ops.recipes.files import read_recipe, read_training
from tfmot_ops.sweep.judge.expected import read_expected

Rng = random.Random
_ODD = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**63,
    10**30,
    10**400,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
]
_ODD += ["\0", "é" * 300, "{{ x }}", "http://a:b@[", [], {}, [[]], [None], {"": None}, {"class_name": 1}, [1, "a", {}]]
_SPEC = {
    "step_id": "s",
    "inputs": {"model": {"uri": "/m.h5", "sha256": "0" * 64, "size_bytes": 1, "format": "keras_h5"}},
    "output_uri": "/out",
    "tracking": {"uri": "http://mlflow", "experiment": "e", "key": {"dag_id": "d"}},
    "options": {"kind": "fine_tune", "recipe": "sparse50_wi8_ai8", "dataset": "digits", "epochs": 2},
}
_RECIPE = {
    "name": "mine",
    "sparsity": {"ratio": 0.6, "scope": {"include": ["a*"], "exclude": ["class:Dense"]}},
    "quantization": {"method": "qat", "calibration_samples": 100},
    "budget": {"fine_tune_epochs": 3, "qat_epochs": 1},
}
_PLAN = {"learning_rate": {"rate": 0.01, "schedule": "cosine"}, "early_stopping": {"patience": 20}}
_EXPECTED = {"MobileNet": {"cpu_s": 1.0, "memory_gib": 2.0, "passes": ["wi8_ai8"], "fails": {}}}


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or dict, index or key) in a document."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def changed(document: Any, rng: Rng, kept: frozenset[str] = frozenset()) -> Any:
    """The document with one to three places changed: another value, a new member, or one that is taken away."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice([place for place in _places(document) if place[1] not in kept])
        match rng.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(["x", "name", "kind", "config", str(key) + "s"])] = copy.deepcopy(rng.choice(_ODD))
            case _:
                holder[key] = copy.deepcopy(rng.choice(_ODD))
        if not any(True for _ in _places(document)):
            break
    return document


def broken(data: bytes, rng: Rng) -> bytes:
    """Bytes that are cut, overwritten, moved or taken away in places."""
    if len(data) < 4:
        return data
    new, place = bytearray(data), rng.randrange(len(data))
    match rng.randrange(5):
        case 0:
            return bytes(new[:place])
        case 1:
            for _ in range(rng.randint(1, 20)):
                new[rng.randrange(len(new))] = rng.randrange(256)
        case 2:
            other, count = rng.randrange(len(new)), rng.randint(1, 200)
            new[place : place + count] = new[other : other + count]
        case 3:
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(len(new) // 4) * 4
                new[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\1\0\0\0"])
        case _:
            del new[place : place + rng.randint(1, 300)]
    return bytes(new)


def _document(read: Callable[[Any], Any], good: Any, suffix: str) -> Callable[[Path, Rng], Any]:
    def attempt(folder: Path, rng: Rng) -> Any:
        path = folder / f"document{suffix}"
        document = changed(good, rng)
        text = json.dumps(document) if suffix == ".json" else yaml.safe_dump(document, allow_unicode=True)
        data = text.encode("utf-8", errors="replace")
        path.write_bytes(broken(data, rng) if rng.random() < 0.3 else data)
        return read(path)

    return attempt


def _model(folder: Path, rng: Rng) -> Any:
    kept = frozenset({"layers"})
    suffix = rng.choice([".h5", ".keras"])
    path = folder / f"model{suffix}"
    good = folder.parent / f"good{suffix}"
    if rng.random() < 0.2:
        path.write_bytes(broken(good.read_bytes(), rng))
    else:
        change = changed_h5 if suffix == ".h5" else changed_keras
        change(good, path, lambda config: _replaced(config, changed(config, rng, kept)))
    return core.load_model(path)


def _replaced(config: Any, new: Any) -> None:
    config.clear()
    config.update(new)


def _tflite(folder: Path, rng: Rng) -> Any:
    data = broken((folder.parent / "good.tflite").read_bytes(), rng)
    core.profile_tflite(data)
    return core.evaluate(data, np.zeros((6, 8), np.float32), np.arange(6) % 3)


KINDS: dict[str, Callable[[Path, Rng], Any]] = {
    "spec": _document(read_spec, _SPEC, ".json"),
    "recipe": _document(read_recipe, _RECIPE, ".yaml"),
    "recipe in JSON": _document(read_recipe, _RECIPE, ".json"),
    "plan": _document(read_training, _PLAN, ".yaml"),
    "expected": _document(read_expected, _EXPECTED, ".yaml"),
    "model": _model,
    "tflite": _tflite,
}


def ends(kind: str, folder: Path, count: int, seed: int) -> Counter[str]:
    """How many attempts ended how; one that ends in any other way is named with its seed."""
    found: Counter[str] = Counter()
    scratch = folder / "fuzzing"
    scratch.mkdir(exist_ok=True)
    for number in range(seed, seed + count):
        started = time.perf_counter()
        try:
            KINDS[kind](scratch, random.Random(number))  # noqa: S311 - not for secrets
            end = "good"
        except TfmotOpsError as error:
            end = f"exit code {error.exit_code}" if error.exit_code > 1 else f"NOT FORESEEN, seed {number}: {error}"
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            end = f"NOT FORESEEN, seed {number}: {type(error).__name__}: {error}"
        if time.perf_counter() - started > 20:
            end = f"NOT FORESEEN, seed {number}: took {time.perf_counter() - started:.0f} s"
        found[end[:300]] += 1
    return found


def main() -> None:
    """Count the ends of one kind, as the arguments of the command say."""
    kind, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        good_files(Path(folder))
        for end, number in ends(kind, Path(folder), count, seed).most_common():
            sys.stdout.write(f"{kind}: {number} {end}\n")


if __name__ == "__main__":
    main()
