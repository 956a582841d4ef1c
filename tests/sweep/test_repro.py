"""A failing cell leaves a script with the smallest part of its model that still fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tfmot_ops.contract import CompatResult, Stage, Status
from tfmot_ops.sweep.probe import _lines
from tfmot_ops.sweep.repro import LONGEST_SCRIPT, make_repro, normalised, write_repros
from tfmot_ops.sweep.shrink import INPUT, Call, Part, gates, members, smallest

# What a regression of tf_keras would do, planted from outside: Python imports this file as it starts, and a layer's
# class is changed as soon as it is loaded.
PLANT = """
import importlib.abc, importlib.machinery, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            def get_config(self):
                {deed}
            module.{layer}.get_config = get_config

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def plant(folder, layer, deed):
    module = {"ReLU": "activation.relu", "Dense": "core.dense"}[layer]
    text = PLANT.format(module=f"tf_keras.src.layers.{module}", layer=layer, deed=deed)
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")


def run(*command, path=None):
    environment = {**os.environ, "PYTHONPATH": path or "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, env=environment
    )


def failed(architecture, **fields):
    return CompatResult(
        architecture=architecture,
        recipe="wi8_ai8",
        status=Status.FAILED,
        failed_stage=Stage.NORMALIZE,
        **fields,
    )


@pytest.mark.timeout(1500)
def test_a_planted_regression_of_a_layer(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "plant"
    plant(folder, "ReLU", "raise NotImplementedError(f'planted: {self.name!r} has no config')")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    path = tmp_path / "cell.json"
    done = run("-m", "tfmot_ops.sweep.cell", "MobileNet", "wi8_ai8", path, path=str(folder))
    assert done.returncode == 0, done.stderr
    cell = CompatResult.model_validate_json(path.read_text())
    assert (cell.failed_stage, cell.error_type) == (Stage.NORMALIZE, "NotImplementedError")

    assert write_repros([cell], tmp_path / "repros") == {"MobileNet/wi8_ai8": "MobileNet-wi8_ai8.py"}
    script = tmp_path / "repros" / "MobileNet-wi8_ai8.py"
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_SCRIPT
    assert "The smallest part that does: 1 of 86 layers (ReLU)." in text
    planted = run(script, path=str(folder))
    assert planted.returncode == 1
    assert "normalize NotImplementedError planted: 'conv1_relu' has no config" in planted.stderr
    sound = run(script)
    assert sound.returncode == 0, sound.stderr


@pytest.mark.timeout(1500)
def test_a_crash_is_bisected_too(plugin, tmp_path) -> None:
    plant(plugin, "Dense", "os.kill(os.getpid(), signal.SIGSEGV)")
    cell = failed("sound", error_class="crash")
    repro = make_repro(cell)
    assert repro is not None
    assert (repro.layers, repro.of_layers) == (1, 4)
    assert "crash" in repro.script
    script = tmp_path / "repro.py"
    script.write_text(repro.script, encoding="utf-8")
    assert run(script, path=str(plugin)).returncode == -11
    (plugin / "sitecustomize.py").unlink()
    sound = run(script, path=str(plugin))
    assert sound.returncode == 0, sound.stderr
    # It fails no more, so nothing is claimed.
    assert make_repro(cell) is None


@pytest.mark.timeout(1500)
def test_a_nested_model_is_gone_into(plugin, tmp_path) -> None:
    plant(plugin, "ReLU", "raise NotImplementedError('planted')")
    cell = failed("nests", error_type="NotImplementedError")
    repro = make_repro(cell)
    assert repro is not None
    assert "The smallest part that does: 1 of 2 layers of outer/inner (ReLU)." in repro.script
    script = tmp_path / "repro.py"
    script.write_text(repro.script, encoding="utf-8")
    assert "normalize NotImplementedError planted" in run(script, path=str(plugin)).stderr
    (plugin / "sitecustomize.py").unlink()
    sound = run(script, path=str(plugin))
    assert sound.returncode == 0, sound.stderr


def chain(*inputs):
    return [Call(f"layer_{i}", "Conv2D", tuple(each), 0, (4, 4, 8)) for i, each in enumerate(inputs)]


# 0 - 1 - 2 --------- 5 - 6
#          `- 3 - 4 -'
RESIDUAL = chain([INPUT], [0], [1], [2], [3], [2, 4], [5])


@pytest.mark.parametrize(
    ("culprits", "expected"),
    [
        ({0}, Part(INPUT, 0)),
        ({1}, Part(0, 1)),
        ({3}, Part(2, 3)),
        ({5}, Part(2, 5)),
        ({6}, Part(5, 6)),
        ({1, 3}, Part(0, 3)),
        ({0, 6}, Part(INPUT, 6)),
    ],
)
def test_the_part_is_the_smallest(culprits, expected) -> None:
    asked = []

    def fails(part):
        asked.append(part)
        return culprits <= set(members(RESIDUAL, part))

    assert smallest(RESIDUAL, fails) == expected
    assert len(asked) <= 10


def test_gates_are_what_every_path_leads_through() -> None:
    assert gates(RESIDUAL, range(7)) == [0, 1, 2, 5, 6]
    two_ways = chain([INPUT], [INPUT], [0, 1])
    assert gates(two_ways, range(3)) == [2]


def test_halving_asks_few_questions() -> None:
    calls = chain([INPUT], *([i] for i in range(999)))
    asked = []

    def fails(part):
        asked.append(part)
        return 700 in members(calls, part)

    assert smallest(calls, fails) == Part(699, 700)
    assert len(asked) <= 25


def test_a_tensor_of_unknown_size_neither_ends_nor_begins_a_part() -> None:
    calls = [*RESIDUAL[:3], Call("layer_3", "Conv2D", (2,)), *RESIDUAL[4:]]
    assert smallest(calls, lambda part: 3 in members(calls, part)) == Part(2, 4)


def test_a_message_without_what_differs_from_run_to_run() -> None:
    one = "layer 'block_1_conv' at 0x7f12 in /usr/lib/python3/a.py differs by 1.3e-05"
    two = "layer 'conv2_relu' at 0x8aaa in /opt/b/c.py differs by 0.25"
    assert normalised(one) == normalised(two) == "layer <name> at <number> in <path> differs by <number>"


def test_a_process_that_hangs_or_grows_is_given_up() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.PIPE) as process:
        with pytest.raises(TimeoutError):
            list(_lines(process, time.monotonic() + 0.3, 2**40))
        with pytest.raises(MemoryError):
            list(_lines(process, time.monotonic() + 60, 1.0))
        process.kill()


def test_a_cell_that_passed_has_no_repro() -> None:
    assert make_repro(CompatResult(architecture="MobileNet", recipe="wi8_ai8", status=Status.OK)) is None
