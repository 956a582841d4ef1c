"""Fingerprints of what the core and the chain make, to show that a change of structure changes no result.

`python tests/fingerprint.py record before.json` before the change, `record after.json` after it, then
`python tests/fingerprint.py compare before.json after.json`, which lists every difference and exits with 1 if there
is one. Recorded for a small member of each family of tf_keras.applications and for the user models of the tests:
sha256 of the exported TFLite file, and the reports of the layers. Recorded for two seeded chains on the digits: every
metric, so every epoch's loss, but for those that are measured in time.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
#: Recipes of the core's part: QAT with sparsity, and the converter's PTQ.
RECIPES = ("sparse50_wi8_ai8", "wi8_ai8_ptq")
#: Recipes of the chain's part.
CHAINS = ("sparse50_wi8_ai8", "wi8_ai8_ptq")
_TIMED = re.compile(r"duration|latency|_ms|seconds|wall|rss|memory")


def _module(name: str) -> Any:
    """A test module, wherever in `tests` it is."""
    (path,) = TESTS.rglob(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def _makers() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name -> function that makes the model."""
    for family, member in _module("test_families").MEMBERS.items():
        yield f"family {family}", member.build
    users, patterns = _module("test_user_models"), _module("test_user_patterns")
    for name in ("_conv_1d", "_u_net", "_layer_norm", "_arithmetic", "_hard_swish"):
        yield f"user{name}", getattr(users, name)
    for name, (make, _) in users._KINDS.items():  # noqa: SLF001 - the table of the tests
        yield f"user {name}", make
    for name in ("_siamese", "_shared_layers", "_several_inputs", "_preprocessing", "_multiplier_and_groups"):
        yield f"user{name}", getattr(patterns, name)


def _samples(model: Any) -> Any:
    """16 samples for each input: normal numbers, or rows of a table of 20."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)

    def draw(tensor: Any) -> Any:
        shape = (16, *tensor.shape[1:])
        if tensor.dtype == tf.int32:
            return rng.integers(0, 20, shape).astype(np.int32)
        return rng.normal(size=shape).astype(np.float32)

    return tf.nest.map_structure(draw, model.input)


def _core(make: Callable[[], Any], name: str) -> dict[str, Any]:
    from tfmot_ops import core

    core.keras.backend.clear_session()
    core.keras.utils.set_random_seed(0)
    model, recipe = make(), core.recipes.decode(name)
    x, reports = _samples(model), []
    if recipe.sparsity:
        model, found = core.prune(model, recipe)
        reports += found
        model = core.strip(model)
    if recipe.quantization and recipe.quantization.method == "qat":
        model, found = core.quantize(model, recipe, x)
        reports += found
    tflite = core.export_tflite(model, recipe, x)
    if not reports:
        reports = list(core.report_file(model, tflite))
    layers = [f"{r.path} | {r.class_name} | {r.outcome} | {r.reason}" for r in reports]
    return {"sha256": hashlib.sha256(tflite).hexdigest(), "layers": layers}


def _chain(recipe: str) -> dict[str, Any]:
    """Every metric of every step of a seeded chain, and the lines of its epochs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "tfmot_ops.cli", "optimize", "--model", "resnet8", "--dataset", "digits"),
            *("--recipe", recipe, "--epochs", "2", "--seed", "0", "--limit", "300", "--no-tracking", "--json"),
            *("--output", folder),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        return {"failed": done.stderr}
    kept = {
        step["step_id"]: {name: value for name, value in step["metrics"].items() if not _TIMED.search(name)}
        for step in json.loads(done.stdout)["results"]
    }
    epochs = [line for line in done.stderr.splitlines() if " epoch " in line]
    return {"metrics": kept, "epochs": epochs}


def record(path: Path) -> None:
    """Record everything in a JSON file."""
    found: dict[str, Any] = {}
    for name, make in _makers():
        for recipe in RECIPES:
            key = f"{name}, {recipe}"
            try:
                found[key] = _core(make, recipe)
            except Exception as error:  # noqa: BLE001 - a refusal is a result as well
                found[key] = {"refused": f"{type(error).__name__}: {error}"}
            print(key, found[key].get("sha256", found[key].get("refused", ""))[:60], flush=True)
    for recipe in CHAINS:
        found[f"chain, {recipe}"] = _chain(recipe)
        print("chain", recipe, flush=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def compare(before: Path, after: Path) -> int:
    """Print what differs between two records; the count of differences."""
    one, other = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    differ = [key for key in one | other if one.get(key) != other.get(key)]
    for key in differ:
        a, b = one.get(key, {}), other.get(key, {})
        for part in a | b:
            if a.get(part) != b.get(part):
                print(f"{key}: {part}\n  before: {str(a.get(part))[:2000]}\n  after:  {str(b.get(part))[:2000]}")
    print(f"{len(one)} recorded before, {len(other)} after, {len(differ)} differ")
    return len(differ)


def main() -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("path", type=Path)
    pair = commands.add_parser("compare")
    pair.add_argument("before", type=Path)
    pair.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.path)
        return 0
    return min(compare(options.before, options.after), 1)


if __name__ == "__main__":
    sys.exit(main())
