"""What a failing cell leaves to whoever mends it: a short script with the smallest part of the model that still fails.

`python -m tfmot_ops.sweep.repro.script RESULT_JSON OUT_FOLDER` writes `<architecture>-<recipe>.py` and, with its
fingerprint, `<architecture>-<recipe>.json`. The failing thing may crash or hang, so all of it runs in processes of
their own; this one loads no TensorFlow.

A script needs this package and what it works with, and nothing of the sweep's: where the failure is at a rewriting, it
is our code that fails.
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

#: Lines that a script may have.
LONGEST_SCRIPT = 40
#: Seconds after which a check that should end is taken for one that hangs, where the cell did.
_HANG_S = 120.0
#: Wall time in seconds that the repros of one sweep may take together.
BUDGET_S = 1800.0
#: Folder of the scripts, beside the page.
REPROS = "repros"
#: Least time worth starting with: TensorFlow is imported three times.
_LEAST_S = 30.0
_WIDTH = 110


class Repro(Document):
    """A script that shows a cell's failure.

    Attributes:
        cell: `MobileNet/wi8_ai8`.
        script: Python text; exits with 0 once the failure is mended.
        fingerprint: sha256 of what makes the failure this one: stage, exception's class, message without numbers and
            names, classes of the layers in the part. Two cells that fail for one reason often share it.
        layers: how many calls of layers the part has; 0 where the architecture cannot be built at all.
        of_layers: how many the architecture has, or the model nested in it that the part is of.
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
    """Find the smallest part of a failed cell's architecture that fails in the same way, and write it down.

    In the same way means: the same first failed stage and the same class of exception, or the same kind of death.

    Args:
        result: of the failed cell.
        recipe: it was run with; without, the one its name says.
        seed: it was run with.
        limits: of one check of a part.
        budget_s: wall time in seconds after which the smallest part so far is taken.

    Returns:
        None for a cell that passed, or fails no more when it is run again.
    """
    if result.status is Status.OK:
        return None
    limits = limits or Limits(time_s=_HANG_S if result.error_class == "timeout" else 600.0)
    until = result.failed_stage or Stage.AGREE
    told = Failure(until.value, result.error_type or result.error_class or "unknown")
    deadline = time.monotonic() + budget_s
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        asked = result.recipe if recipe is None else recipe.model_dump_json()
        with Prober(result.architecture, asked, until=until, limits=limits, seed=seed, log=log) as prober:
            seen = prober.check(None)
            if seen is None or (seen.kind, seen.stage if result.failed_stage else told.stage) != (
                told.kind,
                told.stage,
            ):
                return None
            cuts = _cuts(prober, seen, deadline)
    writer = _Writer(result, recipe, seed, limits)
    # A part that fails only after others did in the same process does not show by itself: then a larger one has to.
    for cut in cuts:
        repro = writer.write(cut)
        if _is_shown(repro.script, cut.failure, limits):
            return repro
    return None


@dataclass(frozen=True)
class _Cut:
    """A part of an architecture, or of a model nested in it; without a part, the whole architecture.

    Attributes:
        failure: how it fails.
        calls: those of the architecture or nested model.
        part: of these calls.
        within: names of the nested models that lead to them, the outermost first.
        entry: shape of one sample of the innermost one's input.
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
    """What fails as `seen`, the smallest first: where a part is one nested model, a part of that is looked for."""

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
    """A message without what differs from one model, machine or run to the next: quoted names, paths, numbers."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "<name>", message)
    text = re.sub(r"(/[\w.+-]+){2,}", "<path>", text)
    text = re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?(e[+-]?\d+)?", "<number>", text)
    return " ".join(text.split())[:500]


def _is_shown(script: str, failure: Failure, limits: Limits) -> bool:
    """Whether a script fails, run by itself."""
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
    """Write repros of failed cells, one after the other, each made by a process of its own.

    Cells of a family that fail at one stage with one error class share the script of the first of them that has one.

    Args:
        failed: results of the cells; those that ran shortest come first.
        folder: where the page is; the scripts go to `repros/<architecture>-<recipe>.py` in it, each with its
            fingerprint in a .json beside it.
        seed: the cells were run with.
        recipes: name -> recipe, of those that their name does not say.
        budget_s: wall time in seconds for all of them.
        say: told of each before it is made.

    Returns:
        Cell -> path of its script in `folder`. A cell is left out whose failure did not show again, or not in time;
        its .log says so.
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
                log.write_text(f"not made: the {budget_s:g} s for all repros were spent\n", encoding="utf-8")
                continue
            say(f"making the repro of {result.cell}, {left:.0f} s at most")
            if not _make(result, log, (recipes or {}).get(result.recipe), seed, left):
                continue
            made[kind] = f"{REPROS}/{_stem(result)}.py"
        names[result.cell] = made[kind]
    return names


def _kind(result: CompatResult) -> tuple[str, ...]:
    """What one script stands for; registered models are a family in name only."""
    family = result.family if result.family not in {"", "registered"} else result.architecture
    return result.error_class or "unknown", result.failed_stage or "", family


def _make(result: CompatResult, log: Path, recipe: Recipe | None, seed: int, time_s: float) -> bool:
    path, asked = log.with_suffix(".failed"), log.with_suffix(".recipe")
    path.write_text(result.model_dump_json(), encoding="utf-8")
    # Half of the time to find it: the last check, and the script's own run, come behind.
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
        asked.write_text(recipe.model_dump_json(), encoding="utf-8")
        command.append(str(asked))
    try:
        return run_limited(command, log, Limits(time_s=time_s), os.environ).exit_code == 0
    finally:
        path.unlink(missing_ok=True)
        asked.unlink(missing_ok=True)


def _stem(result: CompatResult) -> str:
    return re.sub(r"[^\w.-]", "-", result.cell)


def main(arguments: list[str]) -> int:
    """Write the repro of one result; exits with 4 when the failure did not show again."""
    if len(arguments) not in range(2, 6):
        raise SpecError(
            "a repro needs two arguments",
            required="RESULT_JSON OUT_FOLDER [SEED [BUDGET_S [RECIPE_JSON]]]",
            received=" ".join(arguments) or "none",
            remedy="call python -m tfmot_ops.sweep.repro.script with the result file of a failed cell and a folder",
        )
    die_with_parent()
    result = CompatResult.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    seed, budget_s, asked = (*arguments[2:], *("0", str(BUDGET_S), "")[len(arguments) - 2 :])
    recipe = Recipe.model_validate_json(Path(asked).read_text(encoding="utf-8")) if asked else None
    repro = make_repro(result, recipe, seed=int(seed), budget_s=float(budget_s))
    if repro is None:
        sys.stderr.write(f"{result.cell}: fails no more, or has not failed\n")
        return 4
    folder, stem = Path(arguments[1]), _stem(result)
    files.write(folder / f"{stem}.py", repro.script)
    files.write(folder / f"{stem}.json", repro.model_dump_json(indent=1))
    sys.stdout.write(f"{folder / stem}.py: {repro.layers} of {repro.of_layers} layers, {repro.fingerprint}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
