"""Checks parts of an architecture in a child process that may crash or hang (`python -m tfmot_ops.sweep.repro.probe`).

One child process checks many parts, as TensorFlow's import takes longer than most checks. A crash of the child is the
result of the check, and the next check starts a new child.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tfmot_ops.contract import Recipe, Stage, Status
from tfmot_ops.sweep.repro.shrink import INPUT, Call, Part
from tfmot_ops.sweep.run.limits import POLL_S, Limits, death, imported_for_good
from tfmot_ops.system.processes import die_with_parent, resident_bytes

if TYPE_CHECKING:
    from tfmot_ops.core import keras

#: Seconds beyond the time limit after which a child whose parent is gone ends itself.
_GRACE_S = 30.0


@dataclass(frozen=True)
class Failure:
    """How a check failed.

    Attributes:
        stage: the stage that failed.
        kind: class of the exception, or `crash`, `timeout` or `out_of_memory` if the process died.
        message: message of the exception, or how the process ended.
    """

    stage: str
    kind: str
    message: str = ""

    def is_like(self, other: Failure | None) -> bool:
        """Whether both failures have the same stage and kind."""
        return other is not None and (self.stage, self.kind) == (other.stage, other.kind)


class Prober:
    """Checks in a child process whether parts of an architecture fail; use as a context manager.

    Args:
        architecture: name in the catalogue.
        recipe: name of a recipe, or the JSON of a recipe.
        until: the last stage to run.
        limits: limits of one check.
        seed: seed of weights and samples.
        log: file for the output of the child processes.
    """

    def __init__(self, architecture: str, recipe: str, *, until: Stage, limits: Limits, seed: int, log: Path) -> None:
        self._limits = limits
        self._log = log
        self._task = {
            "architecture": architecture,
            "recipe": recipe,
            "until": until.value,
            "seed": seed,
            "time_s": limits.time_s + _GRACE_S,
        }
        self.within: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[Part | None, Failure | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def enter(self, layer: str) -> None:
        """Descend into the nested model `layer`: later `calls` and `check` refer to this model."""
        self._end()
        self._known.clear()
        self.within += (layer,)

    def calls(self) -> list[Call]:
        """The calls in the model's layer graph; empty if it has no layer graph or cannot be built."""
        answer = self._ask("calls")
        if isinstance(answer, Failure):
            return []
        shapes = ("inputs", "shape", "entry")
        return [Call(**{**each, **{name: _tuple(each[name]) for name in shapes}}) for each in answer]

    def check(self, part: Part | None) -> Failure | None:
        """The failure of a part, or None if the part passes; `part` None means the whole architecture."""
        if part not in self._known:
            answer = self._ask(None if part is None else [part.first, part.last])
            self._known[part] = Failure(**answer) if isinstance(answer, dict) else answer
            # A used child holds memory of earlier checks, which would count against the memory limit.
            if (failure := self._known[part]) is not None and failure.kind == "out_of_memory":
                self._end()
        return self._known[part]

    def _ask(self, question: Any) -> Any:
        process = self._process = self._process or self._start()
        stage = Stage.BUILD.value
        deadline = time.monotonic() + self._limits.time_s
        try:
            _send(process, json.dumps(question))
            for line in _lines(process, deadline, self._limits.memory_bytes):
                said = json.loads(line)
                if "answer" in said:
                    return said["answer"]
                stage = said["stage"]
        except TimeoutError:
            failure = Failure(stage, "timeout", f"no answer after {self._limits.time_s:g} s")
        except MemoryError:
            failure = Failure(stage, "out_of_memory", f"more than {self._limits.memory_bytes:g} bytes resident")
        except BrokenPipeError:
            failure = Failure(stage, "crash", "the process ended before the check started")
        else:
            code = process.wait()
            failure = Failure(stage, death(code), f"the process ended with code {code}")
        self._end()
        return failure

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        with self._log.open("ab") as log:
            # In this process's group, so that a signal to the group ends the child too.
            process = subprocess.Popen(
                [sys.executable, "-m", "tfmot_ops.sweep.repro.probe"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
            )  # fmt: skip
        with contextlib.suppress(BrokenPipeError):
            _send(process, json.dumps({**self._task, "within": self.within}))
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _tuple(sizes: list[int] | None) -> tuple[int, ...] | None:
    return None if sizes is None else tuple(sizes)


def _send(process: subprocess.Popen[bytes], line: str) -> None:
    stream: Any = process.stdin
    stream.write(line.encode() + b"\n")
    stream.flush()


def _lines(process: subprocess.Popen[bytes], deadline: float, memory_bytes: float) -> Any:
    """Yield the lines that a process writes, until it ends.

    Raises:
        TimeoutError: the deadline passed.
        MemoryError: the process has more resident memory than `memory_bytes`.
    """
    stream: Any = process.stdout
    rest = b""
    while True:
        if select.select([stream], [], [], POLL_S)[0]:
            data = os.read(stream.fileno(), 1 << 16)
            if not data:
                return
            *complete, rest = (rest + data).split(b"\n")
            yield from complete
        elif time.monotonic() > deadline:
            raise TimeoutError
        elif resident_bytes(process.pid) > memory_bytes:
            raise MemoryError


class _Subject:
    """A part of an architecture, with the interface that `check_architecture` expects."""

    def __init__(
        self, model: keras.Model, name: str, input_shape: tuple[int, ...], low_high: tuple[float, float]
    ) -> None:
        self._model = model
        self.name = name
        self.input_shape = input_shape
        self.pixel_range = low_high

    def build(self, *, seed: int = 0) -> keras.Model:
        del seed  # the whole architecture was built with the seed already
        return self._model


def main() -> int:
    """Read questions from stdin, one per line, and write one answer per line, until stdin closes."""
    die_with_parent()
    # TensorFlow's output must not mix with the answers on stdout.
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    task = json.loads(sys.stdin.readline())

    def say(what: dict[str, Any]) -> None:
        channel.write(json.dumps(what) + "\n")

    answerer: _Answerer | None = None
    for line in sys.stdin:
        faulthandler.dump_traceback_later(task["time_s"], exit=True)
        answerer = answerer or _Answerer(task, lambda stage: say({"stage": stage.value}))
        say({"answer": answerer.answer(json.loads(line))})
        faulthandler.cancel_dump_traceback_later()
    return 0


class _Answerer:
    def __init__(self, task: dict[str, Any], on_stage: Callable[[Stage], None]) -> None:
        with imported_for_good():
            from tfmot_ops import recipes
            from tfmot_ops.models.architectures import architecture

        self._architecture = architecture(task["architecture"])
        recipe_text: str = task["recipe"]
        self._recipe = (
            Recipe.model_validate_json(recipe_text) if recipe_text.startswith("{") else recipes.decode(recipe_text)
        )
        self._until = Stage(task["until"])
        self._seed: int = task["seed"]
        self._within: list[str] = task["within"]
        self._on_stage = on_stage
        self._whole: keras.Model | None = None

    def answer(self, question: Any) -> Any:
        if question == "calls":
            return [asdict(call) for call, _ in self._graph()]
        from tfmot_ops.sweep.run.check import check_architecture

        try:
            subject = self._architecture if question is None else self._part(Part(*question))
        except Exception as error:  # noqa: BLE001 - not every tensor can end or begin a model
            return asdict(Failure("cut", type(error).__name__, str(error)))
        result = check_architecture(subject, self._recipe, seed=self._seed, until=self._until, on_stage=self._on_stage)
        if result.status is Status.OK:
            return None
        stage = result.failed_stage or Stage.BUILD
        return asdict(Failure(stage.value, result.error_type or "", result.message))

    def _graph(self) -> list[tuple[Call, Any]]:
        """The calls of the current model, without its nested models' calls, each with its output tensor."""
        if self._whole is None:
            self._whole = self._architecture.build(seed=self._seed)
            for name in self._within:
                self._whole = self._whole.get_layer(name)
            self._calls = _read(self._whole)
        return self._calls

    def _part(self, part: Part) -> _Subject:
        from tfmot_ops.core import keras

        calls = self._graph()
        whole: Any = self._whole
        call, end = calls[part.last]
        if part.first != INPUT:
            first, begin = calls[part.first]
            return _Subject(keras.Model(begin, end), call.layer, first.shape or (), INNER_RANGE)
        model = keras.Model(whole.input, end)
        if self._within:
            return _Subject(model, call.layer, whole.input_shape[1:], INNER_RANGE)
        return _Subject(model, call.layer, self._architecture.input_shape, self._architecture.pixel_range)


#: Range of the input values for a part that does not begin at the model's input.
INNER_RANGE = (-1.0, 1.0)


def _read(model: keras.Model) -> list[tuple[Call, Any]]:
    from tfmot_ops.core import keras
    from tfmot_ops.core.keras import private
    from tfmot_ops.core.keras.identity import IdentityKey

    found: list[tuple[Call, Any]] = []
    index: dict[IdentityKey, int] = {}
    by_depth = private.calls_by_depth(model)
    for node in (node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]):
        layer = node.layer
        if isinstance(layer, keras.layers.InputLayer):
            continue
        outputs = _flat(node.outputs)
        for output in outputs:
            index[IdentityKey(output)] = len(found)
        sources = tuple(index.get(IdentityKey(tensor), INPUT) for tensor in node.keras_inputs)
        kind = type(layer).__name__ + (f":{layer.symbol}" if hasattr(layer, "symbol") else "")
        place = private.index_of_call(layer, node)
        entry = _sizes(layer.inputs) if isinstance(layer, keras.Model) and layer.inputs else None
        found.append((Call(layer.name, kind, sources, place, _sizes(outputs), entry), outputs[0]))
    return found


def _flat(structure: Any) -> list[Any]:
    import tensorflow as tf

    flat: list[Any] = tf.nest.flatten(structure)
    return flat


def _sizes(tensors: list[Any]) -> tuple[int, ...] | None:
    """Shape of one sample, if `tensors` is one float tensor with known sizes; else None."""
    if len(tensors) != 1 or tensors[0].shape.rank is None or not tensors[0].dtype.is_floating:
        return None
    sizes = tensors[0].shape.as_list()[1:]
    return None if None in sizes else tuple(sizes)


if __name__ == "__main__":
    sys.exit(main())
