"""What a sweep is judged by: expectations, error classes, the order in which cells run."""

from __future__ import annotations

from typing import Any

import pytest

from tfmot_ops.contract import CompatResult, Stage, Status
from tfmot_ops.sweep.classes import ERROR_CLASSES, classify
from tfmot_ops.sweep.expected import Expectation, Failure, accept, costs, judge, read_expected, write_expected
from tfmot_ops.sweep.plan import Cost, Weight, pick, shards, weight

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
        (result(), FAILS, {}, "improvements"),
        (result(), {}, {}, "new"),
        (failed(), {}, {}, "new"),
        (failed(), {}, GOOD, "regressions"),
        (failed(), FAILS, GOOD, "regressions"),
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


def test_shards_hold_every_cell_once_and_one_weight_class() -> None:
    known = {f"N{i}": Cost(cpu_s=100 + i, memory_bytes=(1 + i % 12) * GIB) for i in range(40)}
    dealt = shards(known, ("r", "s"), known, shard_s=600)
    cells = [(name, shard.recipe) for shard in dealt for name in shard.architectures]
    assert sorted(cells) == sorted((name, recipe) for name in known for recipe in ("r", "s"))
    assert all({weight(known[name]) for name in shard.architectures} == {shard.weight} for shard in dealt)
    assert {shard.weight for shard in dealt} == set(Weight)
    assert len({shard.label for shard in dealt}) == len(dealt)


def test_the_packaged_expectations_name_architectures_of_the_catalogue() -> None:
    from tfmot_ops.core.catalog import catalogue

    expected = read_expected()
    assert expected
    assert set(expected) <= set(catalogue())
