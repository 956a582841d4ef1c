"""What a sweep is judged by: expectations, error classes, the order in which cells run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tfmot_ops.contract import CompatResult, Judgement, Recipe, Stage, Status, SweepResult
from tfmot_ops.errors import SpecError
from tfmot_ops.sweep.judge.expected import Expectation, Failure, accept, costs, judge, read_expected, write_expected
from tfmot_ops.sweep.plan.cells import Cost, pick
from tfmot_ops.sweep.run.error_classes import ERROR_CLASSES, classify
from tfmot_ops.sweep.run.matrix import Cell
from tfmot_ops.sweep.whole import Sweep, last_good, with_seed

GIB = 2**30


def result(architecture: str = "A", recipe: str = "wi8_ai8", **fields: Any) -> CompatResult:
    return CompatResult(architecture=architecture, recipe=recipe, **{"status": Status.OK, **fields})


def failed(stage: Stage | None = Stage.EXPORT, **fields: Any) -> CompatResult:
    given = {"error_class": "conversion", "error_type": "ExportError", "message": "no", **fields}
    return result(status=Status.FAILED, failed_stage=stage, **given)


KNOWN_FAILURE = Failure(stage=Stage.EXPORT, error_class="conversion", reason="known")
PASSES = {"A": Expectation(cpu_s=1, memory_gib=1, passes=("wi8_ai8",))}
FAILS = {"A": Expectation(cpu_s=1, memory_gib=1, fails={"wi8_ai8": KNOWN_FAILURE})}
GOOD = {"A/wi8_ai8": result()}


@pytest.mark.parametrize(
    ("found", "expected", "last_good", "kind"),
    [
        (result(), PASSES, {}, None),
        (failed(), PASSES, {}, "regressions"),
        (failed(), FAILS, {}, None),
        (failed(Stage.BUILD), FAILS, {}, "regressions"),
        (failed(None), FAILS, {}, "regressions"),
        (failed(error_class="crash"), FAILS, {}, "regressions"),
        (failed(Stage.INVOKE), FAILS, {}, "new"),
        (result(), FAILS, {}, "improvements"),
        (result(), {}, {}, "new"),
        (failed(), {}, {}, "new"),
        (failed(), {}, GOOD, "regressions"),
        # What never passed does not get worse.
        (failed(), {}, {"A/wi8_ai8": failed()}, "new"),
        # An accepted failure is no regression any more.
        (failed(), FAILS, GOOD, None),
        (result(), {}, GOOD, None),
        (None, PASSES, {}, "missing"),
    ],
)
def test_a_cell_is_judged(found, expected, last_good, kind) -> None:
    judgement = judge([("A", "wi8_ai8")], [found] if found else [], expected, last_good)
    told = {name: list(cells) for name, cells in judgement.model_dump().items() if cells}
    assert told == ({kind: ["A/wi8_ai8"]} if kind else {})
    assert judgement.is_good == (kind not in {"regressions", "missing"})


def test_accepting_a_sweep_makes_it_expected_and_keeps_reasons(tmp_path) -> None:
    path = tmp_path / "expected.yaml"
    cells = [
        result(metrics={"build_s": 2.5, "train_s": 1.0, "peak_memory_bytes": 3.0 * GIB}),
        failed(recipe="sparse50_wi8_ai8"),
    ]
    cells[1] = cells[1].model_copy(update={"recipe": "sparse50_wi8_ai8"})
    write_expected(accept({}, cells), path)
    read = read_expected(path)
    asked = [("A", "wi8_ai8"), ("A", "sparse50_wi8_ai8")]
    assert judge(asked, cells, read).model_dump() == {"regressions": {}, "improvements": {}, "new": {}, "missing": {}}
    assert costs(read)["A"] == Cost(3.5, 3.0 * GIB)
    told = read["A"].model_copy(update={"fails": {"sparse50_wi8_ai8": KNOWN_FAILURE}})
    assert accept({"A": told}, cells)["A"].fails["sparse50_wi8_ai8"].reason == "known"


def test_costs_are_those_of_the_dearest_recipe() -> None:
    dear = [result(metrics={"build_s": 9.0}), result(recipe="sparse50_wi8_ai8", metrics={"build_s": 12.0})]
    cheap = [result(metrics={"build_s": 4.0}), result(recipe="sparse50_wi8_ai8", metrics={"build_s": 5.0})]
    known = accept({}, dear)
    assert known["A"].cpu_s == 12.0
    assert accept(known, cheap[:1])["A"].cpu_s == 12.0, "the other recipe may still cost as much"
    assert accept(known, cheap)["A"].cpu_s == 5.0


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"error_type": "SparsityLostError"}, "sparsity_lost"),
        ({"error_type": "UnsupportedModelError", "stage": Stage.NORMALIZE}, "unsupported_layer"),
        ({"error_type": "CompatError", "stage": Stage.NORMALIZE}, "disagreement"),
        ({"error_type": "CompatError", "stage": Stage.EXPORT}, "not_fully_int8"),
        ({"error_type": "CompatError", "stage": Stage.RELOAD}, "reload"),
        ({"error_type": "ValueError", "stage": Stage.RELOAD}, "reload"),
        ({"error_type": "ExportError"}, "conversion"),
        ({"error_type": "ExportError", "message": "error: failed to legalize operation 'tf.X'"}, "unsupported_op"),
        ({"error_type": "ResourceExhaustedError", "stage": Stage.TRAIN}, "out_of_memory"),
        ({"error_type": "ValueError", "message": "expected ndim=4, found ndim=3"}, "rank_mismatch"),
        (
            {"error_type": "ValueError", "message": "Quantizing a keras Model inside another keras Model is not"},
            "nested_model",
        ),
        ({"error_type": "ValueError", "message": "Please initialize `Prune` with a supported"}, "unsupported_layer"),
        ({"error_type": "KeyError", "message": "'x'"}, "unknown"),
    ],
)
def test_a_failure_has_a_class(fields, name) -> None:
    stage = fields.pop("stage", Stage.EXPORT)
    assert classify(failed(stage, **fields)) == name


def test_every_class_says_cause_and_remedy() -> None:
    assert len({each.name for each in ERROR_CLASSES}) == len(ERROR_CLASSES)
    assert all(each.cause.endswith(".") and each.remedy.endswith(".") for each in ERROR_CLASSES)


def test_cells_are_packed_by_memory() -> None:
    small, large = Cost(1, 2 * GIB), Cost(1, 12 * GIB)
    assert pick([large, small], [], jobs=2, memory_bytes=16 * GIB) == 0
    assert pick([large, small], [large], jobs=2, memory_bytes=16 * GIB) == 1
    assert pick([large], [large], jobs=2, memory_bytes=16 * GIB) is None
    assert pick([small], [small, small], jobs=2, memory_bytes=16 * GIB) is None
    # One that never fits has the machine for itself.
    assert pick([large], [], jobs=2, memory_bytes=8 * GIB) == 0
    assert pick([large], [small], jobs=2, memory_bytes=8 * GIB) is None


def swept(*cells: CompatResult, hours: int = 0, **fields: Any) -> SweepResult:
    started = datetime(2026, 11, 24, tzinfo=UTC) + timedelta(hours=hours)
    return SweepResult(sweep_id=f"{hours}", started_at=started, duration_s=0.0, cells=cells, **fields)


def test_the_baseline_is_the_last_time_that_each_cell_passed() -> None:
    old = swept(result("A", message="old"), result("B"), failed())
    bad = swept(result("A"), failed(), hours=1, judgement=Judgement(regressions={"B/wi8_ai8": "no"}))
    one = swept(result("C"), hours=2)
    good = last_good([one, bad, old])
    assert set(good) == {"A/wi8_ai8", "B/wi8_ai8", "C/wi8_ai8"}, "the sweep of one says nothing of the others"
    assert good["A/wi8_ai8"].message == "", "of a sweep in which another cell got worse, but the latest"


def test_another_seed_is_no_baseline() -> None:
    other = swept(*with_seed([result("A")], 7))
    assert last_good([other]) == {}
    assert set(last_good([other], 7)) == {"A/wi8_ai8"}


def test_a_regression_stays_one_until_it_is_accepted() -> None:
    sweeps, expected = [swept(result())], dict[str, Expectation]()
    for hours in (1, 2):
        judgement = judge([("A", "wi8_ai8")], [failed()], expected, last_good(sweeps))
        assert list(judgement.regressions) == ["A/wi8_ai8"]
        sweeps.insert(0, swept(failed(), hours=hours, judgement=judgement))
    accepted = accept(expected, [failed()])
    assert judge([("A", "wi8_ai8")], [failed()], accepted, last_good(sweeps)) == Judgement()


class Plan(Sweep):
    """A sweep whose cells fail without being run."""

    def cells(self) -> list[Cell]:
        names = self.architectures or ("A",)
        return [Cell(name, recipe) for recipe in self.recipes for name in names]

    def matrix(self, python: str | None = None) -> Any:
        del python
        run = lambda cells, *_: [result(cell.architecture, cell.recipe.name) for cell in cells]  # noqa: E731
        return SimpleNamespace(run=run)


def test_what_is_gone_from_the_catalogue_is_missing(tmp_path) -> None:
    expected, recipes = {**PASSES, "Gone": PASSES["A"]}, (Recipe(name="wi8_ai8"),)
    whole = Plan(tmp_path, recipes=recipes, expected=expected).run()
    assert list(whole.judgement.missing) == ["Gone/wi8_ai8"]
    assert not whole.judgement.is_good
    assert Plan(tmp_path, ("A",), recipes, expected=expected).run().judgement.is_good


def test_a_sweep_of_nothing_is_refused(tmp_path) -> None:
    with pytest.raises(SpecError, match="the sweep has no cells"):
        Sweep(tmp_path).cells()
    with pytest.raises(SpecError, match="the sweep has no cells"):
        Sweep(tmp_path, recipes=(Recipe(name="wi8_ai8"),)).run(cells=[])


def test_the_packaged_expectations_name_architectures_of_the_catalogue() -> None:
    from tfmot_ops.models.architectures import catalogue

    expected = read_expected()
    assert expected
    assert set(expected) <= set(catalogue())
