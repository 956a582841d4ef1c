"""The agreement over several seeds is judged by the median of three."""

from tfmot_ops.contract import CompatResult, Status
from tfmot_ops.sweep.judge.margins import main, margins


def a_result(name: str, margin: float, status: Status = Status.OK) -> CompatResult:
    metrics = {"sqnr_db": 20.0 + margin, "ptq_sqnr_db": 20.0}
    return CompatResult(architecture=name, recipe="wi8_ai8", status=status, metrics=metrics)


def test_two_seeds_on_one_side_decide():
    results = [(0, a_result("A", -3.0)), (1, a_result("A", 0.5)), (2, a_result("A", -0.5))]
    results += [(0, a_result("B", -3.0)), (1, a_result("B", -2.0)), (0, a_result("C", 1.0)), (1, a_result("C", 2.0))]
    results += [(0, a_result("D", 0.0)), (1, a_result("D", -9.0)), (0, a_result("E", 0.0, Status.FAILED))]
    rows = {row.cell: row for row in margins(results)}
    assert {cell: row.passes for cell, row in rows.items()} == {
        "B/wi8_ai8": False,
        "D/wi8_ai8": None,
        "A/wi8_ai8": True,
        "C/wi8_ai8": True,
    }
    assert list(rows) == ["D/wi8_ai8", "B/wi8_ai8", "A/wi8_ai8", "C/wi8_ai8"]
    assert rows["A/wi8_ai8"].median == -0.5


def test_of_a_folder(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    for seed, margin in ((0, 1.0), (1, -1.5), (2, -4.0)):
        path = tmp_path / "cells" / f"MobileNet-wi8_ai8-0123-seed{seed}.json"
        path.write_text(a_result("MobileNet", margin).model_dump_json(), encoding="utf-8")
    (tmp_path / "cells" / "VGG16-wi8_ai8-0123-seed0.json").write_text('{"architecture": "VGG', encoding="utf-8")
    assert main([str(tmp_path)]) == 4
    printed = capsys.readouterr()
    assert "VGG16-wi8_ai8-0123-seed0.json is ignored" in printed.err
    line, counts = printed.out.splitlines()
    assert line.split()[:4] == ["BEHIND", "-1.5", "dB", "MobileNet/wi8_ai8"]
    assert counts == "0 within, 1 BEHIND, 0 open, limit -1 dB"
