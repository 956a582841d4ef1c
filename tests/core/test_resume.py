"""A killed training continues and ends with the weights, bit for bit, of one that was never stopped."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.training.checkpoint import Checkpoint, assert_masks_hold
from tfmot_ops.core.training.loop import fit
from tfmot_ops.core.training.seeding import batches
from tfmot_ops.errors import SparsityLostError

pytestmark = pytest.mark.slow

L = keras.layers
RECIPE = "sparse50_wi8_ai8"
RNG = np.random.default_rng(0)
X = RNG.random((40, 6), dtype=np.float32)
Y = np.arange(40) % 3


# --- a real kill, in processes of their own ----------------------------------------------------------------------


def _child(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("resume_child.py")), str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _killed_in_epoch_2(folder: Path, cases: str) -> list[str]:
    """Lines of a child before the one with which it waits, in the middle of its last case's third epoch."""
    with _child(folder, cases, "2") as child:
        assert child.stdout is not None
        said = list(iter(child.stdout.readline, "waiting\n"))
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    return said


def test_trainings_killed_in_the_middle_of_an_epoch_end_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert _killed_in_epoch_2(killed, "pruned") == []
    assert [path.name for path in killed.iterdir()] == ["pruned.npz"]
    assert _killed_in_epoch_2(killed, "pruned,quantized") == ["continues after epoch 2 of 4\n"]
    assert _killed_in_epoch_2(killed, "quantized,planned") == ["continues after epoch 2 of 4\n"]
    with _child(killed, "planned") as child:
        assert child.communicate()[0] == "continues after epoch 2 of 4\n"
    # Never stopped, and without a checkpoint: keeping one must not change the weights either.
    with _child(whole, "pruned,quantized,planned", "without") as child:
        assert child.communicate()[0] == ""
    for case in ("pruned", "quantized", "planned"):
        with np.load(killed / f"{case}_end.npz") as resumed, np.load(whole / f"{case}_end.npz") as expected:
            assert resumed.files == expected.files
            assert len(expected["history_loss"]) == 4
            assert [name for name in expected.files if resumed[name].tobytes() != expected[name].tobytes()] == []


# --- one process, a small network --------------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818 - ends a training as a kill would, for a test in one process
    pass


def _model(optimizer: Any, dropout: float, eager: bool) -> Any:
    set_seed(0)
    inputs = L.Input((6,))
    x = L.Dense(8, activation="relu")(inputs)
    x = L.Dropout(dropout)(x) if dropout else x
    model = keras.Model(inputs, L.Dense(3, activation="softmax")(x))
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], run_eagerly=eager)
    return model


def _train(
    checkpoint: Checkpoint | None,
    *,
    optimizer: Any = "adam",
    dropout: float = 0.0,
    eager: bool = False,
    stop_after: int = 0,
    **changes: Any,
) -> list[np.ndarray]:
    """The weights after a training of 4 epochs, or fewer when it is stopped."""
    model = _model(optimizer, dropout, eager)

    def on_epoch(epoch: int, _: int, __: Any) -> None:
        if epoch == stop_after:
            raise Stop

    arguments = {"epochs": 4, "batch_size": 16, "seed": 1, "on_epoch": on_epoch, "checkpoint": checkpoint} | changes
    try:
        fit(model, X, Y, None, **arguments)
    except Stop:
        assert stop_after
    return model.get_weights()


@pytest.fixture(scope="module")
def whole() -> list[np.ndarray]:
    """The weights after a training that was not stopped."""
    return _train(None)


def _same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The checkpoint of one that was stopped after 2 of its 4 epochs."""
    path = tmp_path_factory.mktemp("stopped") / "state.npz"
    _train(Checkpoint(path), stop_after=2)
    return path


class Halve(keras.callbacks.Callback):
    """Lowers a rate that is a variable."""

    def on_epoch_end(self, *_: Any) -> None:
        self.model.optimizer.learning_rate.assign(self.model.optimizer.learning_rate * 0.5)


OPTIMIZERS: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "lowered_rate": (lambda: keras.optimizers.Adam(0.1), [Halve()]),
    "ema": (lambda: keras.optimizers.AdamW(0.1, weight_decay=0.02, use_ema=True, ema_overwrite_frequency=2), []),
    "legacy": (lambda: keras.optimizers.legacy.SGD(0.1, momentum=0.9), [Halve()]),
    "loss_scale": (lambda: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(0.1), dynamic=True), []),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_continues_where_it_was(name, tmp_path):
    make, callbacks = OPTIMIZERS[name]
    checkpoint = Checkpoint(tmp_path / "state.npz")
    _train(checkpoint, optimizer=make(), callbacks=callbacks, stop_after=3)
    resumed = _train(checkpoint, optimizer=make(), callbacks=callbacks)
    assert _same(resumed, _train(None, optimizer=make(), callbacks=callbacks))
    assert _same(resumed, _train(checkpoint, optimizer=make(), callbacks=callbacks))  # nothing is left to train


@pytest.mark.parametrize("eager", [False, True])
def test_dropout_draws_in_an_epoch_what_it_would_have_drawn(eager, tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.npz")
    _train(checkpoint, dropout=0.3, eager=eager, stop_after=2)
    resumed = _train(checkpoint, dropout=0.3, eager=eager)
    assert _same(resumed, _train(None, dropout=0.3, eager=eager))
    assert not _same(resumed, _train(None, dropout=0.3, eager=eager, seed=2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 2, "epochs": 3}, "epochs 4, now 3, seed 1, now 2"),
        ({"batch_size": 20, "optimizer": "sgd"}, "batch_size 16, now 20, other compile configuration"),
    ],
)
def test_a_checkpoint_of_another_training_is_told_of_and_not_used(changes, reason, stopped, tmp_path):
    told: list[str] = []
    checkpoint = Checkpoint(shutil.copy(stopped, tmp_path / "state.npz"), told.append)
    assert _same(_train(checkpoint, **changes), _train(None, **changes))
    assert told == [f"starts from the beginning: the checkpoint is of another training ({reason})"]


def test_other_data_weights_and_layers_are_another_training(stopped, tmp_path):
    told: list[str] = []
    checkpoint = Checkpoint(shutil.copy(stopped, tmp_path / "state.npz"), told.append)
    model = keras.Sequential([L.Input((6,)), L.Dense(3)])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    fit(model, X + 1, Y, None, epochs=4, batch_size=16, seed=1, checkpoint=checkpoint)
    assert re.search(r"\(other data, other model, other initial weights\)$", told[0])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _without_a_variable(path: Path) -> None:
    with np.load(path) as entries:
        kept = {name: entries[name] for name in entries.files[:-1]}
    np.savez(path, **kept)


@pytest.mark.parametrize(
    "damage",
    [_cut, _flip, _without_a_variable, lambda path: path.write_bytes(b""), lambda path: path.write_text("no zip")],
    ids=["cut", "flipped", "incomplete", "empty", "text"],
)
def test_a_damaged_checkpoint_is_told_of_and_not_used(damage, stopped, whole, tmp_path):
    told: list[str] = []
    checkpoint = Checkpoint(shutil.copy(stopped, tmp_path / "state.npz"), told.append)
    damage(checkpoint.path)
    assert _same(_train(checkpoint), whole)
    assert len(told) == 1
    assert told[0].startswith("starts from the beginning: the checkpoint cannot be used (")


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from tfmot_ops.system import files
with files.whole(Path(sys.argv[1])) as part:
    part.write_bytes(b"PK half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_saving_leaves_the_checkpoint_before(stopped, whole, tmp_path):
    told: list[str] = []
    checkpoint = Checkpoint(shutil.copy(stopped, tmp_path / "state.npz"), told.append)
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, tmp_path / "state.npz"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert _same(_train(checkpoint), whole)
    assert told == ["continues after epoch 2 of 4"]
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_a_disk_that_takes_no_file_does_not_end_the_training(whole, tmp_path):
    told: list[str] = []
    (tmp_path / "file").write_text("")
    assert _same(_train(Checkpoint(tmp_path / "file" / "state.npz", told.append)), whole)
    assert len(told) == 4
    assert told[0].startswith("cannot keep its state after epoch 1 of 4: ")


def test_an_epoch_has_its_order_whatever_came_before():
    def order(epochs: range) -> list[np.ndarray]:
        return [np.asarray(y) for _, y in batches(X, np.arange(40), 16, 7, epochs)]

    whole, third = order(range(4)), order(range(2, 3))
    assert [len(batch) for batch in third] == [16, 16, 8]
    assert _same(whole[6:9], third)
    epochs = [np.concatenate(whole[start : start + 3]) for start in range(0, 12, 3)]
    assert all(np.array_equal(np.sort(epoch), np.arange(40)) for epoch in epochs)
    assert not any(_same([a], [b]) for index, a in enumerate(epochs) for b in epochs[:index])


# --- sparsity at each save ---------------------------------------------------------------------------------------


def _dense(recipe: str, end_step: int | None = None) -> Any:
    model = keras.Sequential([L.Input((6,)), L.Dense(32, name="hidden"), L.Dense(3, activation="softmax", name="out")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    return core.prune(model, core.recipes.decode(recipe), end_step=end_step)[0]


class Lose(keras.callbacks.Callback):
    """Loses a layer's zeros at the end of an epoch."""

    def __init__(self, layer: str, epoch: int) -> None:
        super().__init__()
        self._layer, self._epoch = layer, epoch

    def on_epoch_end(self, epoch: int, __: Any = None) -> None:
        if epoch == self._epoch:
            wrapper = self.model.get_layer(self._layer)
            for variable, _, extra in getattr(wrapper, "_weight_vars", ()):
                extra["mask"].assign(np.ones(variable.shape))
                variable.assign(np.full(variable.shape, 0.1))
            for variable, *_ in getattr(wrapper, "pruning_vars", ()):
                variable.assign(np.full(variable.shape, 0.1))


@pytest.mark.parametrize(
    ("layer", "made"),
    [
        ("prune_low_magnitude_hidden", lambda: _dense("sparse50")),
        ("prune_low_magnitude_hidden", lambda: _dense("sparse80", end_step=4)),
        (
            "quant_hidden",
            lambda: core.quantize(core.strip(_dense(RECIPE)), core.recipes.decode(RECIPE), X)[0],
        ),
    ],
    ids=["constant", "polynomial", "quantised"],
)
def test_lost_sparsity_is_noticed_at_the_save_and_not_kept(layer, made, tmp_path):
    model, checkpoint = made(), Checkpoint(tmp_path / "state.npz")
    callbacks = [*core.pruning_callbacks(), Lose(layer, epoch=2)]
    seen: list[int] = []
    with pytest.raises(SparsityLostError, match="hidden"):
        fit(
            model,
            X,
            Y,
            None,
            epochs=4,
            batch_size=16,
            seed=0,
            callbacks=callbacks,
            on_epoch=lambda epoch, *_: seen.append(epoch),
            checkpoint=checkpoint,
        )
    assert seen == [1, 2]
    with np.load(checkpoint.path) as entries:
        assert b'"epoch": 2,' in entries["about"].tobytes()


def test_masks_are_held_to_what_the_schedule_asked_for_so_far():
    model = _dense("sparse80", end_step=100)
    fit(model, X, Y, None, epochs=3, batch_size=16, seed=0, callbacks=core.pruning_callbacks())
    assert_masks_hold(model)  # far from 80 % after 9 of 100 steps
    model.get_layer("prune_low_magnitude_hidden").pruning_step.assign(100)
    with pytest.raises(SparsityLostError, match=r"at least 0\.800"):
        assert_masks_hold(model)
