"""Makes a repro of a failed cell: a short script with the smallest part of the model that still fails.

`python -m tfmot_ops.sweep.repro.script RESULT_JSON OUT_FOLDER` writes the script `<architecture>-<recipe>.py`, and
`<architecture>-<recipe>.json` with its fingerprint. The failing model may crash or hang, so it runs in child processes;
this process loads no TensorFlow.

A script imports `tfmot_ops.core` and the model's package, but no module of the sweep. It needs `tfmot_ops.core`, as a
failure may be in the core's own rewriting of the model.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from tfmot_ops.contract import CompatResult, Recipe, Stage, Status
from tfmot_ops.contract.document import Document
from tfmot_ops.errors import SpecError
from tfmot_ops.sweep.repro.probe import INNER_RANGE, Failure, Prober
from tfmot_ops.sweep.repro.shrink import INPUT, Call, Part, members, smallest
from tfmot_ops.sweep.run.limits import Limits, run_limited
from tfmot_ops.system import files
from tfmot_ops.system.processes import die_with_parent

#: Largest number of lines of a script.
LONGEST_SCRIPT = 40
#: Time limit in seconds of a check, if the cell failed with `timeout`.
_HANG_S = 120.0
#: Wall time in seconds that the repros of one sweep may take together.
BUDGET_S = 1800.0
#: Folder of the scripts, beside the page.
REPROS = "repros"
#: Smallest remaining time in seconds with which a repro is started: a repro imports TensorFlow three times.
_LEAST_S = 30.0
_WIDTH = 110


class Repro(Document):
    """A script that shows a cell's failure.

    Attributes:
        cell: `MobileNet/wi8_ai8`.
        script: Python source; the script exits with 0 once the failure is fixed.
        fingerprint: sha256 of the stage, the exception's class, the message without numbers and names, and the classes
            of the layers in the part. Cells that fail for the same reason often have the same fingerprint.
        layers: number of layer calls in the part; 0 if the architecture cannot be built.
        of_layers: number of layer calls in the whole model (the architecture, or the nested model with the part).
    """

    cell: str
    script: str
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")
    layers: int
    of_layers: int


def make_repro(
    result: CompatResult,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    limits: Limits | None = None,
    budget_s: float = 1800.0,
) -> Repro | None:
    """Find the smallest part of a failed cell's architecture that fails in the same way, and write its script.

    Two failures are the same if they have the same failed stage and the same class of exception (or crash, timeout).

    Args:
        result: result of the failed cell.
        recipe: recipe of the cell; None decodes the recipe's name in `result`.
        seed: seed of the cell.
        limits: limits of one check of a part.
        budget_s: wall time in seconds after which the search stops with the smallest part found so far.

    Returns:
        The repro; None if the cell passed, or if its failure did not occur again.
    """
    if result.status is Status.OK:
        return None
    limits = limits or Limits(time_s=_HANG_S if result.error_class == "timeout" else 600.0)
    until = result.failed_stage or Stage.AGREE
    recorded = Failure(until.value, result.error_type or result.error_class or "unknown")
    deadline = time.monotonic() + budget_s
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        recipe_text = result.recipe if recipe is None else recipe.model_dump_json()
        with Prober(result.architecture, recipe_text, until=until, limits=limits, seed=seed, log=log) as prober:
            seen = prober.check(None)
            if seen is None or (seen.kind, seen.stage if result.failed_stage else recorded.stage) != (
                recorded.kind,
                recorded.stage,
            ):
                return None
            cuts = _cuts(prober, seen, deadline)
    writer = _Writer(result, recipe, seed, limits)
    # A part may fail only after other checks in the same process. Its script then passes, and a larger part is tried.
    for cut in cuts:
        repro = writer.write(cut)
        if _is_shown(repro.script, cut.failure, limits):
            return repro
    return None


@dataclass(frozen=True)
class _Cut:
    """A failing part of an architecture or of a model nested in it.

    Attributes:
        failure: failure of the part.
        calls: layer calls of the architecture or nested model.
        part: the part of `calls` that fails; None for the whole architecture.
        within: names of the nested models that contain the part, the outermost first.
        entry: shape of one sample of the innermost nested model's input.
    """

    failure: Failure
    calls: list[Call]
    part: Part | None = None
    within: tuple[str, ...] = ()
    entry: tuple[int, ...] = ()

    @property
    def inside(self) -> list[Call]:
        """The calls that fail."""
        return self.calls if self.part is None else [self.calls[index] for index in members(self.calls, self.part)]


def _cuts(prober: Prober, seen: Failure, deadline: float) -> list[_Cut]:
    """Parts that fail like `seen`, the smallest first; if a part is one nested model, its parts are searched too."""

    def fails(part: Part) -> bool:
        return time.monotonic() < deadline and seen.is_like(prober.check(part))

    calls = prober.calls()
    cuts = [_Cut(seen, calls)]
    entry: tuple[int, ...] | None = ()
    while entry is not None and calls and fails(Part(INPUT, len(calls) - 1)):
        part = smallest(calls, fails)
        cut = _Cut(prober.check(part) or seen, calls, part, prober.within, entry)
        cuts.insert(0, cut)
        entry = cut.inside[0].entry if len(cut.inside) == 1 else None
        if entry is not None:
            prober.enter(cut.inside[0].layer)
            calls = prober.calls()
    return cuts


@dataclass(frozen=True)
class _Writer:
    result: CompatResult
    recipe: Recipe | None
    seed: int
    limits: Limits

    def write(self, cut: _Cut) -> Repro:
        fingerprint = _fingerprint(cut.failure, [call.kind for call in cut.inside])
        header = self._header(cut, fingerprint)
        lines = [*header, *self._imports(cut.failure), *self._subject(cut), *self._run(cut.failure)]
        return Repro(
            cell=self.result.cell,
            script="\n".join(lines) + "\n",
            fingerprint=fingerprint,
            layers=len(cut.inside),
            of_layers=len(cut.calls),
        )

    def _header(self, cut: _Cut, fingerprint: str) -> list[str]:
        failure, inside = cut.failure, cut.inside
        place = f" of {'/'.join(cut.within)}" if cut.within else ""
        versions = ", ".join(f"{name} {number}" for name, number in self.result.versions.items())
        kinds = ", ".join(dict.fromkeys(call.kind for call in inside))
        lines = [
            f"{self.result.architecture} under {self.result.recipe} fails at {failure.stage} with {failure.kind}:",
            failure.message.partition("\n")[0],
            f"The smallest part that does: {len(inside)} of {len(cut.calls)} layers{place} ({kinds}).",
            f"Seen with {versions}." if versions else "",
            "Exits with an error while it fails, with 0 once it does not. Fingerprint of the failure:",
            fingerprint,
        ]
        return [f"# {_printable(line)[:_WIDTH]}" for line in lines if line]

    def _imports(self, failure: Failure) -> list[str]:
        hangs = ["import faulthandler"] if failure.kind == "timeout" else []
        names = "Stage" if self.recipe is None else "Recipe, Stage"
        return [*hangs, "import sys", "", "from tfmot_ops import core", f"from tfmot_ops.contract import {names}", ""]

    def _subject(self, cut: _Cut) -> list[str]:
        whole = f"core.architecture({self.result.architecture!r})"
        if cut.part is None:
            return [f"subject = {whole}"]
        last = cut.calls[cut.part.last]
        shape, low_high, begin = f"{whole}.input_shape", f"{whole}.pixel_range", "model.input"
        if cut.within:
            shape, low_high = repr(cut.entry), repr(INNER_RANGE)
        if cut.part.first != INPUT:
            first = cut.calls[cut.part.first]
            shape, low_high, begin = repr(first.shape), repr(INNER_RANGE), _tensor(first)
        return [
            "",
            "class Part:",
            f"    name = {last.layer!r}",
            f"    input_shape = {shape}",
            f"    pixel_range = {low_high}",
            "",
            "    def build(self, *, seed):",
            f"        model = {whole}.build(seed=seed)" + "".join(f".get_layer({name!r})" for name in cut.within),
            f"        first = {begin}",
            f"        last = {_tensor(last)}",
            "        return core.keras.Model(first, last)",
            "",
            "",
            "subject = Part()",
        ]

    def _run(self, failure: Failure) -> list[str]:
        recipe = f"core.recipes.decode({self.result.recipe!r})"
        if self.recipe is not None:
            recipe = f"Recipe.model_validate_json({self.recipe.model_dump_json(exclude_defaults=True)!r})"
        lines = [
            f"recipe = {recipe}",
            f"until = Stage({failure.stage!r})",
            f"result = core.check_architecture(subject, recipe, seed={self.seed}, until=until)",
        ]
        if failure.kind == "out_of_memory":
            return [*lines, f"sys.exit(result.metrics['peak_memory_bytes'] > {self.limits.memory_bytes:.0f})"]
        hangs = [f"faulthandler.dump_traceback_later({self.limits.time_s:g}, exit=True)"]
        lines = hangs * (failure.kind == "timeout") + lines
        return [
            *lines,
            "if result.failed_stage is not None:",
            "    sys.exit(f'{result.failed_stage} {result.error_type} {result.message}')",
        ]


def _tensor(call: Call) -> str:
    return f"model.get_layer({call.layer!r}).get_output_at({call.node})"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _fingerprint(failure: Failure, kinds: list[str]) -> str:
    identity = "\0".join((failure.stage, failure.kind, normalised(failure.message), *kinds))
    return hashlib.sha256(identity.encode()).hexdigest()


def normalised(message: str) -> str:
    """A message without quoted names, paths and numbers, which differ between models, machines and runs."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "<name>", message)
    text = re.sub(r"(/[\w.+-]+){2,}", "<path>", text)
    text = re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?(e[+-]?\d+)?", "<number>", text)
    return " ".join(text.split())[:500]


def _is_shown(script: str, failure: Failure, limits: Limits) -> bool:
    """Whether a script, run in a process of its own, shows the failure."""
    if len(script.splitlines()) > LONGEST_SCRIPT:
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "repro.py"
        path.write_text(script, encoding="utf-8")
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tfmot_ops.sweep.run.limits", sys.executable, str(path)],
                capture_output=True, text=True, errors="replace", cwd=folder, env=environment, check=False,
                timeout=limits.time_s * 2,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return failure.kind == "timeout"
    if failure.kind in {"crash", "timeout", "out_of_memory", "unknown"}:
        return done.returncode != 0
    return done.returncode == 1 and f"{failure.stage} {failure.kind} " in done.stderr


def write_repros(
    failed: Iterable[CompatResult],
    folder: Path,
    *,
    seed: int = 0,
    recipes: Mapping[str, Recipe] | None = None,
    budget_s: float = BUDGET_S,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, str]:
    """Write repros of failed cells, one after the other, each made by a child process.

    Cells of the same family that fail at the same stage with the same error class share one script.

    Args:
        failed: results of the failed cells; the cells that ran shortest are processed first.
        folder: folder of the page; a script is written to `<folder>/repros/<architecture>-<recipe>.py`, and its
            fingerprint to a .json file beside it.
        seed: seed of the cells.
        recipes: name -> recipe, for recipes that cannot be decoded from their name.
        budget_s: wall time in seconds for all repros together.
        say: called with a message before each repro.

    Returns:
        Cell -> path of its script below `folder`, without the cells whose failure did not occur again in time; their
        .log files give the reason.
    """
    deadline = time.monotonic() + budget_s
    (folder / REPROS).mkdir(parents=True, exist_ok=True)
    made: dict[tuple[str, ...], str] = {}
    names: dict[str, str] = {}
    for result in sorted(failed, key=lambda cell: cell.metrics.get("wall_s", 0.0)):
        left, kind = deadline - time.monotonic(), _kind(result)
        if kind not in made:
            log = folder / REPROS / f"{_stem(result)}.log"
            if left < _LEAST_S:
                log.write_text(f"not made: the time for all repros, {budget_s:g} s, is used up\n", encoding="utf-8")
                continue
            say(f"making the repro of {result.cell}, {left:.0f} s at most")
            if not _make(result, log, (recipes or {}).get(result.recipe), seed, left):
                continue
            made[kind] = f"{REPROS}/{_stem(result)}.py"
        names[result.cell] = made[kind]
    return names


def _kind(result: CompatResult) -> tuple[str, ...]:
    """Cells with the same kind share a script; each registered model is a kind, as `registered` is no real family."""
    family = result.family if result.family not in {"", "registered"} else result.architecture
    return result.error_class or "unknown", result.failed_stage or "", family


def _make(result: CompatResult, log: Path, recipe: Recipe | None, seed: int, time_s: float) -> bool:
    path, recipe_file = log.with_suffix(".failed"), log.with_suffix(".recipe")
    path.write_text(result.model_dump_json(), encoding="utf-8")
    # Half of the time for the search, as the last check and the run of the script follow after it.
    command = [
        sys.executable,
        "-m",
        "tfmot_ops.sweep.repro.script",
        str(path),
        str(log.parent),
        str(seed),
        str(time_s / 2),
    ]
    if recipe is not None:
        recipe_file.write_text(recipe.model_dump_json(), encoding="utf-8")
        command.append(str(recipe_file))
    try:
        return run_limited(command, log, Limits(time_s=time_s), os.environ).exit_code == 0
    finally:
        path.unlink(missing_ok=True)
        recipe_file.unlink(missing_ok=True)


def _stem(result: CompatResult) -> str:
    return re.sub(r"[^\w.-]", "-", result.cell)


def main(arguments: list[str]) -> int:
    """Write the repro of one result; return exit code 4 if the failure did not occur again."""
    if len(arguments) not in range(2, 6):
        raise SpecError(
            "a repro needs two arguments",
            required="RESULT_JSON OUT_FOLDER [SEED [BUDGET_S [RECIPE_JSON]]]",
            received=" ".join(arguments) or "none",
            remedy="call python -m tfmot_ops.sweep.repro.script with the result file of a failed cell and a folder",
        )
    die_with_parent()
    result = CompatResult.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    seed, budget_s, recipe_file = (*arguments[2:], *("0", str(BUDGET_S), "")[len(arguments) - 2 :])
    recipe = Recipe.model_validate_json(Path(recipe_file).read_text(encoding="utf-8")) if recipe_file else None
    repro = make_repro(result, recipe, seed=int(seed), budget_s=float(budget_s))
    if repro is None:
        sys.stderr.write(f"{result.cell}: the failure did not occur again, or the cell passed\n")
        return 4
    folder, stem = Path(arguments[1]), _stem(result)
    files.write(folder / f"{stem}.py", repro.script)
    files.write(folder / f"{stem}.json", repro.model_dump_json(indent=1))
    sys.stdout.write(f"{folder / stem}.py: {repro.layers} of {repro.of_layers} layers, {repro.fingerprint}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
