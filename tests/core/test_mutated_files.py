"""200 descriptions of models, changed at random: each ends as a harmless model or as an error, and nothing happens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from untrusted import changed_h5, changed_keras, changed_saved_model, load_in_a_child, small_model

from tfmot_ops import core

pytestmark = [pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"), pytest.mark.slow]
SEED = 20
COUNTS = {"plain.h5": 60, "quantized.h5": 30, "plain.keras": 90, "plain": 20}
MODULES = ["stranger", "os", "subprocess", "builtins", "shutil", "wave", "ctypes", "tf_keras.src.saving.saving_lib"]
MODULES += ["keras.models", "keras.utils", "tensorflow", "keras.layers", "keras.losses", None]
NAMES = ["f", "C", "system", "Popen", "exec", "eval", "rmtree", "load_model", "get_file", "deserialize_keras_object"]
NAMES += ["Lambda", "TFOpLambda", "QuantizeWrapperV2", "tfmot_ops>Affine", "function", "__lambda__", "Dense", "L2"]
NAMES += ["io.write_file", "load_library", "io.gfile.rmtree", "py_function", "math.add", "relu", "../x", ""]


def _parts(value: Any) -> Iterator[Any]:
    """Every list and dict of a description."""
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _parts(item)


def _reference(rng: random.Random, path: str) -> dict[str, Any]:
    """Something that Keras may look up, call or build."""
    found: dict[str, Any] = {"class_name": rng.choice(["function", *NAMES]), "module": rng.choice(MODULES)}
    found["config"] = rng.choice([rng.choice(NAMES), {}, {"function": rng.choice(NAMES), "name": "w"}, path])
    found["registered_name"] = rng.choice([None, *NAMES])
    for key in ("module", "registered_name"):
        if rng.random() < 0.2:
            del found[key]
    return found


def mutate(config: Any, rng: random.Random, path: str) -> None:
    """Change a description in one to three places.

    The names and numbers by which the layers are connected stay: Keras would wait for ever for a layer that never
    comes.
    """
    for _ in range(rng.randint(1, 3)):
        objects = [part for part in _parts(config) if isinstance(part, dict) and "class_name" in part]
        named = rng.choice(objects)
        match rng.randrange(6):
            case 0:
                named[rng.choice(["module", "class_name", "registered_name"])] = rng.choice([*MODULES, *NAMES])
            case 1:
                named |= {"module": rng.choice(MODULES), "class_name": rng.choice(NAMES)}
            case 2:
                named |= {key: value for key, value in _reference(rng, path).items() if key != "name"}
            case 3 if isinstance(named.get("config"), dict) and named["config"]:
                keys = [
                    key for key in named["config"] if key not in {"layers", "input_layers", "output_layers", "name"}
                ]
                named["config"][rng.choice([*keys, "activation"])] = rng.choice([_reference(rng, path), path, *NAMES])
            case 4:
                layers = [part["layers"] for part in _parts(config) if isinstance(part, dict) and "layers" in part]
                call = ["_CONSTANT_VALUE", -1, path, {"contents": "x"}]
                added = _reference(rng, path) | {"name": "w", "inbound_nodes": [rng.choice([call, [call]])]}
                for chosen in layers[:1]:
                    chosen.append(added)
            case _:
                calls = [part for part in _parts(config) if isinstance(part, list) and len(part) == 4]
                calls = [call for call in calls if isinstance(call[3], dict)]
                if calls:
                    rng.choice(calls)[3][rng.choice(["y", "x", "name", "filename"])] = rng.choice(
                        [path, _reference(rng, path)]
                    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, Any]:
    """What loading each of the files did, half of them a process."""
    folder: Path = tmp_path_factory.mktemp("files")
    watched = folder / "watched"
    (folder / "modules").mkdir()
    watched.mkdir()
    (watched / "victim").write_text("1\n")
    (folder / "modules" / "stranger.py").write_text(f"open({str(watched / 'imported')!r}, 'w')\ndef f(x): return x\n")
    good = {name: folder / name for name in COUNTS}
    for name in ("plain.h5", "plain.keras", "plain"):
        small_model().save(good[name], save_format=None if "." in name else "tf")
    quantized, _ = core.quantize(small_model(), core.recipes.decode("wi8_ai8"))
    core.save_model(quantized, good["quantized.h5"])
    rng, made = random.Random(SEED), []  # noqa: S311 - not for secrets
    change = {".h5": changed_h5, ".keras": changed_keras, "": changed_saved_model}
    for name, count in COUNTS.items():
        for index in range(count):
            path = folder / f"{index}_{name}"
            made.append(
                change[path.suffix](good[name], path, lambda config: mutate(config, rng, str(watched / "victim")))
            )
    halves = [load_in_a_child(folder, watched, good.values(), made[start::2]) for start in range(2)]
    return {name: answer for half in halves for name, answer in half.items()}


def test_no_changed_description_does_anything(answers) -> None:
    assert len(answers) == sum(COUNTS.values()) == 200
    seen = {name: answer["seen"] for name, answer in answers.items() if answer["seen"]}
    assert not seen, json.dumps(seen, indent=1)


def test_each_changed_description_ends_as_a_model_or_as_an_error_that_was_foreseen(answers) -> None:
    ends = {name: answer["error"] for name, answer in answers.items()}
    strange = {name: answers[name]["message"] for name, end in ends.items() if (end or "").startswith("NOT FORESEEN")}
    assert not strange, json.dumps(strange, indent=1)
    # The changes are neither all harmless nor all refused.
    assert sum(end == "UnsafeModelError" for end in ends.values()) > 100
    assert sum(end is None for end in ends.values()) > 5
