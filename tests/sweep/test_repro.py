"""A failing cell leaves a script with the smallest part of its model that still fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from planting import plant

from tfmot_ops.contract import CompatResult, Recipe, Stage, Status
from tfmot_ops.sweep.repro import script as module
from tfmot_ops.sweep.repro.probe import _lines
from tfmot_ops.sweep.repro.script import LONGEST_SCRIPT, make_repro, normalised, write_repros
from tfmot_ops.sweep.repro.shrink import INPUT, Call, Part, dominators, members, smallest
from tfmot_ops.sweep.run.limits import Ended

pytestmark = pytest.mark.slow


def break_config(folder, layer, deed):
    """What a regression of tf_keras would do: a layer's config cannot be had any more."""
    module = {"ReLU": "activation.relu", "Dense": "core.dense"}[layer]
    code = f"def get_config(self):\n    {deed}\nmodule.{layer}.get_config = get_config\n"
    plant(folder, f"tf_keras.src.layers.{module}", code)


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
    break_config(folder, "ReLU", "raise RuntimeError(f'planted: {self.name!r} has no config')")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    path = tmp_path / "cell.json"
    done = run("-m", "tfmot_ops.sweep.run.cell", "MobileNet", "wi8_ai8", path, path=str(folder))
    assert done.returncode == 0, done.stderr
    cell = CompatResult.model_validate_json(path.read_text())
    assert (cell.failed_stage, cell.error_type) == (Stage.NORMALIZE, "RuntimeError")

    assert write_repros([cell], tmp_path) == {"MobileNet/wi8_ai8": "repros/MobileNet-wi8_ai8.py"}
    script = tmp_path / "repros" / "MobileNet-wi8_ai8.py"
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_SCRIPT
    assert "The smallest part that does: 1 of 86 layers (ReLU)." in text
    planted = run(script, path=str(folder))
    assert planted.returncode == 1
    assert "normalize RuntimeError planted: 'conv1_relu' has no config" in planted.stderr
    sound = run(script)
    assert sound.returncode == 0, sound.stderr


@pytest.mark.timeout(1500)
def test_a_crash_is_bisected_too(plugin, tmp_path) -> None:
    break_config(plugin, "Dense", "os.kill(os.getpid(), signal.SIGSEGV)")
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
    break_config(plugin, "ReLU", "raise RuntimeError('planted')")
    cell = failed("nests", error_type="RuntimeError")
    repro = make_repro(cell)
    assert repro is not None
    assert "The smallest part that does: 1 of 2 layers of outer/inner (ReLU)." in repro.script
    script = tmp_path / "repro.py"
    script.write_text(repro.script, encoding="utf-8")
    assert "normalize RuntimeError planted" in run(script, path=str(plugin)).stderr
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
    assert dominators(RESIDUAL, range(7)) == [0, 1, 2, 5, 6]
    two_ways = chain([INPUT], [INPUT], [0, 1])
    assert dominators(two_ways, range(3)) == [2]


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


@pytest.fixture
def asked(monkeypatch):
    """The commands that would have made repros, each of which takes as many seconds as its architecture's name says."""
    commands, clock = [], [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def fake(command, log, limits, _environment) -> Ended:
        cell = CompatResult.model_validate_json(Path(command[3]).read_text(encoding="utf-8"))
        recipe = Path(command[7]).read_text(encoding="utf-8") if len(command) > 7 else None
        commands.append((cell.architecture, limits.time_s, float(command[6]), recipe))
        clock[0] += float(cell.architecture[1:])
        log.write_text("made\n", encoding="utf-8")
        return Ended(4 if cell.family == "never" else 0, None, 0.0, 1.0)

    monkeypatch.setattr(module, "run_limited", fake)
    return commands


def test_one_repro_a_kind_of_failure(asked, tmp_path) -> None:
    cells = [
        failed("A9", family="resnet", error_class="conversion", metrics={"wall_s": 9.0}),
        failed("B1", family="resnet", error_class="conversion", metrics={"wall_s": 1.0}),
        failed("C1", family="vgg", error_class="conversion"),
        failed("D1", family="resnet", error_class="unknown"),
        failed("E1", family="registered", error_class="unknown"),
        failed("F1", family="registered", error_class="unknown"),
        failed("G1", family="never", error_class="unknown"),
        failed("H1", family="never", error_class="unknown"),
    ]
    names = write_repros(cells, tmp_path)
    # The shortest of a kind stands for it; where it shows nothing, the next is asked.
    assert sorted(name for name, *_ in asked) == ["B1", "C1", "D1", "E1", "F1", "G1", "H1"]
    assert names["A9/wi8_ai8"] == names["B1/wi8_ai8"] == "repros/B1-wi8_ai8.py"
    assert len(set(names.values())) == 5
    assert not {"G1/wi8_ai8", "H1/wi8_ai8"} & set(names)


def test_repros_have_one_budget_together(asked, tmp_path) -> None:
    cells = [failed(name, family=name, error_class="unknown") for name in ("A60", "B60", "C60")]
    said = []
    names = write_repros(cells, tmp_path, budget_s=100.0, say=said.append)
    assert [(limit, budget) for _, limit, budget, _ in asked] == [(100.0, 50.0), (40.0, 20.0)]
    assert list(names) == ["A60/wi8_ai8", "B60/wi8_ai8"]
    assert len(said) == 2
    assert "the time for all repros, 100 s, is used up" in (tmp_path / "repros" / "C60-wi8_ai8.log").read_text(
        encoding="utf-8"
    )


def test_a_recipe_that_its_name_does_not_say_goes_along(asked, tmp_path) -> None:
    own = Recipe(name="mine")
    cells = [failed("A1").model_copy(update={"recipe": "mine"}), failed("B1")]
    write_repros(cells, tmp_path, recipes={"mine": own})
    assert {name: recipe for name, _, _, recipe in asked} == {"A1": own.model_dump_json(), "B1": None}
    assert not list((tmp_path / "repros").glob("*.recipe"))


def test_the_command_takes_seed_budget_and_recipe(tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(module, "make_repro", lambda *given, **named: seen.append((*given[1:], named)))
    monkeypatch.setattr(module, "die_with_parent", lambda: None)
    (tmp_path / "cell").write_text(failed("A").model_dump_json(), encoding="utf-8")
    (tmp_path / "recipe").write_text(Recipe(name="mine").model_dump_json(), encoding="utf-8")
    given = [str(tmp_path / "cell"), str(tmp_path)]
    assert module.main(given) == 4
    assert module.main([*given, "3", "7.5", str(tmp_path / "recipe")]) == 4
    assert seen == [
        (None, {"seed": 0, "budget_s": module.BUDGET_S}),
        (Recipe(name="mine"), {"seed": 3, "budget_s": 7.5}),
    ]


MAKES = """
import sys
from pathlib import Path
from tfmot_ops.contract import CompatResult
from tfmot_ops.sweep.repro.script import write_repros
write_repros([CompatResult.model_validate_json(sys.argv[1])], Path(sys.argv[2]))
"""


# In the place of TensorFlow's import, which a probe does when it is asked: longer than any test.
HANGS = """
import pathlib, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            pathlib.Path({mark!r}).touch()
            time.sleep(600)

sys.meta_path.insert(0, Finder())
"""


def test_a_killed_sweep_leaves_no_repro_and_no_probe(plugin, tmp_path) -> None:
    mark = tmp_path / "busy"
    (plugin / "sitecustomize.py").write_text(HANGS.format(mark=str(mark)), encoding="utf-8")
    cell = failed("sleeps", error_class="timeout").model_dump_json()
    environment = {**os.environ, "PYTHONPATH": str(plugin)}
    with subprocess.Popen([sys.executable, "-c", MAKES, cell, str(tmp_path)], env=environment) as sweep:
        assert _wait_for(lambda: [mark] * mark.exists(), 1)
        below = _below(sweep.pid)
        sweep.kill()
    assert len(below) == 2, "the repro's process and its probe"
    assert _wait_for(lambda: [] if any(map(_is_up, below)) else ["gone"], 1)


def _wait_for(look, count) -> list:
    deadline = time.monotonic() + 30
    while len(found := look()) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _below(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text(encoding="ascii").split()):
            found += [child, *_below(child)]
    return found


def _is_up(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False


def test_a_probe_that_the_kernel_kills_is_out_of_memory(tmp_path, monkeypatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nread task\nkill -9 $$\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    options = {"until": Stage.BUILD, "limits": module.Limits(), "seed": 0, "log": tmp_path / "log"}
    with module.Prober("sound", "wi8_ai8", **options) as prober:
        failure = prober.check(None)
    assert failure is not None
    assert (failure.stage, failure.kind) == ("build", "out_of_memory"), failure.message
