"""One command at a time in an output folder, and a chain whose MLflow run cannot be ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfmot_ops.cli.chain import Chain
from tfmot_ops.cli.resume import attempt
from tfmot_ops.contract import Status
from tfmot_ops.errors import StepFailedError


def test_of_two_commands_without_tracking_in_one_folder_the_second_is_told(tmp_path: Path) -> None:
    with attempt("a" * 64, tmp_path, None, False, print):
        with (
            pytest.raises(StepFailedError, match="runs already in this output folder") as caught,
            attempt("b" * 64, tmp_path, None, False, print),
        ):
            pass
        assert caught.value.exit_code == 4
        with attempt("b" * 64, tmp_path / "other", None, False, print):
            pass
    with attempt("b" * 64, tmp_path, None, False, print):
        pass


@pytest.mark.slow
def test_a_chain_whose_run_cannot_be_ended_has_its_file_and_an_error(tmp_path: Path) -> None:
    store, aside = tmp_path / "mlflow.db", tmp_path / "aside.db"
    told = []

    def say(text: str) -> None:
        told.append(text)
        if text.startswith("close_run: sums up"):
            store.rename(aside)
            store.write_bytes(b"no database any more")

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "table.npz", x=rng.normal(size=(120, 5)), y=rng.integers(0, 3, 120))
    data = f"npz:{tmp_path}/table.npz"
    chain = Chain("mlp", data, "wi8_ai8_ptq", tmp_path / "out", f"sqlite:///{store}", epochs={"train": 1})
    last = chain.run(say)
    assert last.status is Status.OK
    aside.replace(store)
    assert chain.save_tflite().stat().st_size > 0
    assert chain.closed is not None
    assert chain.closed.error is not None
    assert chain.closed.error.exit_code == 4
    assert "open_run: opens the chain's MLflow run" in told
