"""Releases: gates against the champion, promotion, rollback, the card, and what a registered file answers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
from typer.testing import CliRunner

from tfmot_ops import core
from tfmot_ops.cli.app import app
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import (
    Artifact,
    ArtifactFormat,
    EvaluateOptions,
    OpenRunOptions,
    Policy,
    QuantizeOptions,
    RegisterOptions,
    Rule,
    Status,
    StepResult,
    StepSpec,
    Tracking,
)
from tfmot_ops.errors import SpecError, StepFailedError
from tfmot_ops.tracking import StepRun, promote, registry_of, rollback
from tfmot_ops.tracking.models import model_of_version
from tfmot_ops.tracking.registry import version_of

keras = core.keras
L = keras.layers
_RNG = np.random.default_rng(0)
X = {
    "image": _RNG.normal(size=(6, 8, 8, 1)).astype(np.float32),
    "words": _RNG.integers(0, 9, (6, 4)).astype(np.int32),
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A file of two named inputs, one of them of whole numbers, and two named outputs."""
    image, words = keras.Input((8, 8, 1), name="image"), keras.Input((4,), dtype="int32", name="words")
    x = L.Flatten()(L.Conv2D(4, 3, activation="relu")(image))
    y = L.Flatten()(L.Embedding(9, 4)(words))
    both = L.Concatenate()([x, y])
    model = keras.Model([image, words], {"kind": L.Dense(3, name="kind")(both), "size": L.Dense(1, name="size")(x)})
    path = tmp_path_factory.mktemp("file") / "model.tflite"
    quantized, _ = core.quantize(model, core.recipes.decode("wi8_ai8"), X)
    path.write_bytes(core.export_tflite(quantized, core.recipes.decode("wi8_ai8")))
    return path


def register(uri: str, file: Path, metrics: dict[str, float], tracking: Any = None, **options: Any) -> Any:
    """The result of the step that registers the file, as it runs in every place."""
    data = file.read_bytes()
    artifact = Artifact(
        uri=file.as_uri(),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        format=ArtifactFormat.TFLITE,
    )
    spec = StepSpec(
        step_id="register",
        inputs={"tflite": artifact},
        tracking=Tracking(uri=uri, **(tracking or {})),
        options=RegisterOptions(**{"name": "net", "metrics": metrics, **options}),
    )
    return execute(spec, lambda _: None)


def chain(uri: str, file: Path) -> str:
    """Id of the run of a chain that made and measured the file."""
    parent = None
    data: dict[str, Any] = {"recipe": "wi8_ai8", "dataset": "digits"}
    for options in (OpenRunOptions(), QuantizeOptions(**data), EvaluateOptions(**data)):
        spec = StepSpec(step_id=options.kind, tracking=Tracking(uri=uri, parent_run_id=parent), options=options)
        run = StepRun(spec)
        made = run.store.put(file, "tflite", ArtifactFormat.TFLITE) if options.kind == "quantize" else None
        result = StepResult(
            step_id=options.kind,
            kind=options.kind,
            status=Status.OK,
            spec_sha256=spec.sha256(),
            outputs={"tflite": made} if made else {},
            metrics={"accuracy": 0.9} if options.kind == "evaluate" else {},
        )
        parent = parent or run.run_id
        run.finish(result, file.parent)
    assert parent is not None
    return parent


BETTER = Policy(rules=(Rule(metric="accuracy", better=True), Rule(metric="size_bytes", at_most=10_000)))


@pytest.fixture(scope="module")
def versions(uri: str, file: Path) -> list[Any]:
    """The results of three registrations; the first version becomes the champion, and the third is refused."""
    return [
        register(uri, file, {"accuracy": 0.8, "size_bytes": 9e3}, policy=BETTER, promote=True),
        register(uri, file, {"accuracy": 0.9, "size_bytes": 9e3}, policy=BETTER),
        register(uri, file, {"accuracy": 0.7, "size_bytes": 9e4}, policy=BETTER),
    ]


def test_a_version_has_to_be_better_than_the_champion_and_every_broken_rule_is_named(versions: list[Any]) -> None:
    first, second, third = versions
    assert (first.status, first.parameters["registered_version"]) == (Status.OK, "1")
    assert (second.status, second.parameters["registered_version"]) == (Status.OK, "2")
    assert third.error is not None
    assert third.error.exit_code == 4
    assert "2 of its gates failed" in third.error.message
    assert "better than the champion's 0.8, received 0.7" in third.error.message
    assert "required 10000 or less, received 90000" in third.error.message


def test_a_registered_file_is_ranked_among_the_models(uri: str, versions: list[Any]) -> None:
    client = mlflow.MlflowClient(tracking_uri=uri)
    numbers = [result.parameters["registered_version"] for result in versions[:2]]
    wanted = [model_of_version(client, "net", number) for number in numbers]
    experiment = client.get_experiment_by_name("tfmot_ops").experiment_id
    order = [{"field_name": "metrics.accuracy", "ascending": False}]
    found = client.search_logged_models([experiment], "tags.`tfmot_ops.kind` = 'register'", order_by=order)
    ranked = [each for each in found if each.model_id in wanted]
    figures = [{metric.key: metric.value for metric in each.metrics} for each in ranked]
    assert figures == [{"accuracy": 0.9, "size_bytes": 9e3}, {"accuracy": 0.8, "size_bytes": 9e3}]


@pytest.mark.usefixtures("versions")
def test_a_version_has_a_card(uri: str, tmp_path: Path) -> None:
    version = registry_of(uri).get_model_version("net", "2")
    for text in (
        "# net, version 2",
        "| accuracy, this file | 90.0% |",
        "9,000 bytes",
        "accuracy`: better True",
        "## Limits",
    ):
        assert text in version.description
    assert f"sha256 `{version.tags['tfmot_ops.sha256']}`" in version.description
    for name in ("model_card.md", "model_card.html"):
        path = mlflow.artifacts.download_artifacts(f"runs:/{version.run_id}/{name}", dst_path=str(tmp_path))
        assert "net, version 2" in Path(path).read_text(encoding="utf-8")


@pytest.mark.usefixtures("versions")
def test_promotion_and_rollback(uri: str) -> None:
    client = registry_of(uri)
    done = promote(client, "net", "candidate")
    assert (done.version, done.replaced) == ("2", "1")
    assert promote(client, "net", "02").replaced == "2"  # already the champion: nothing changes
    assert version_of(client, "net", "champion") == "2"
    with pytest.raises(StepFailedError, match="promoted by another process"):
        promote(client, "net", "2", expected="1")
    assert rollback(client, "net").version == "1"
    with pytest.raises(StepFailedError, match="nothing to roll back to"):
        rollback(client, "net")
    promote(client, "net", "2")
    promote(client, "net", "1")
    assert rollback(client, "net").version == "2"
    assert rollback(client, "net").version == "1"
    with pytest.raises(StepFailedError, match="nothing to roll back to"):
        rollback(client, "net")
    for name, version in (("net", "9"), ("net", "\u00b2"), ("net", "blue"), ("another", "1")):
        with pytest.raises(StepFailedError, match=f"no version {version}"):
            promote(client, name, version)
    client.create_registered_model("tfmot_ops-promotion-of-net", tags={"tfmot_ops.owner": "another"})
    with pytest.raises(StepFailedError, match="another process promotes a version"):
        promote(client, "net", "2")
    client.delete_registered_model("tfmot_ops-promotion-of-net")
    # No lock is left.
    assert [model.name for model in client.search_registered_models()] == ["net"]


def test_a_better_version_replaces_the_champion_that_it_was_compared_with(uri: str, file: Path) -> None:
    options = {"name": "chain", "policy": Policy(rules=(Rule(metric="accuracy", better=True),)), "promote": True}
    results = [register(uri, file, {"accuracy": value}, **options) for value in (0.5, 0.6, 0.6)]
    assert [result.status for result in results] == [Status.OK, Status.OK, Status.FAILED]
    assert results[1].parameters["replaced_version"] == "1"
    assert "better than the champion's 0.6, received 0.6" in results[2].error.message


@pytest.mark.slow
def test_two_steps_of_one_chain_register_and_promote_one_version(uri: str, file: Path) -> None:
    parent, metrics = chain(uri, file), {"accuracy": 0.9}
    for task, promotes in (("register", False), ("promote", True), ("promote", True)):
        tracking = {"parent_run_id": parent, "key": {"task_id": task}}
        result = register(uri, file, metrics, tracking, name="asked", promote=promotes)
        assert result.parameters["registered_version"] == "1"
    client = registry_of(uri)
    assert version_of(client, "asked", "champion") == "1"
    other = {"parent_run_id": chain(uri, file), "key": {"task_id": "register of another run"}}
    assert register(uri, file, metrics, other, name="asked").parameters["registered_version"] == "2"
    assert "accuracy, this file | 90.0%" in client.get_model_version("asked", "1").description


PROMOTER = """
import sys
from tfmot_ops.tracking import promote, registry_of
client = registry_of(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(promote(client, "net", sys.argv[2], to="stable", expected=None).version)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("versions")
def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(uri: str) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTER, uri, version],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for version in ("1", "2")
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    told = [racer.communicate(timeout=60) for racer in racers]
    assert sorted(racer.returncode for racer in racers) == [0, 1]
    (winner,) = [out.strip() for racer, (out, _) in zip(racers, told, strict=True) if racer.returncode == 0]
    (loser,) = [err for racer, (_, err) in zip(racers, told, strict=True) if racer.returncode]
    assert "promotes a version" in loser or "promoted by another process" in loser
    assert version_of(registry_of(uri), "net", "stable") == winner


@pytest.mark.usefixtures("versions")
def test_a_registered_file_answers_with_its_own_numbers_by_name(uri: str, file: Path) -> None:
    registry_of(uri)
    loaded = mlflow.pyfunc.load_model("models:/net/2")
    expected = dict(zip(("kind", "size"), core.predict(file.read_bytes(), X), strict=True))
    answer = loaded.predict(X)
    assert answer.keys() == expected.keys()
    for name, values in answer.items():
        np.testing.assert_array_equal(values, expected[name])
    with pytest.raises(mlflow.exceptions.MlflowException, match="words"):
        loaded.predict({"image": X["image"]})


@pytest.mark.slow
@pytest.mark.usefixtures("versions")
def test_a_served_file_answers_over_http(uri: str, file: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/net/2", "-p", str(port)]
    server = subprocess.Popen(
        [*line, "--env-manager", "local"],
        # MLflow starts `uvicorn` by its name.
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        answer = _answer(f"http://127.0.0.1:{port}", {name: values.tolist() for name, values in X.items()})
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    for name, values in zip(("kind", "size"), core.predict(file.read_bytes(), X), strict=True):
        np.testing.assert_allclose(np.asarray(answer[name]), values, rtol=1e-6)


def _answer(address: str, inputs: dict[str, Any]) -> Any:
    for _ in range(120):
        try:
            requests.get(f"{address}/ping", timeout=5).raise_for_status()
            break
        except requests.RequestException:
            time.sleep(0.5)
    reply = requests.post(f"{address}/invocations", json={"inputs": inputs}, timeout=30)
    reply.raise_for_status()
    return reply.json()["predictions"]


@pytest.mark.slow
def test_the_commands(uri: str, file: Path, versions: list[Any]) -> None:
    def command(*arguments: str) -> Any:
        line = [sys.executable, "-m", "tfmot_ops.cli", "registry", *arguments, "--tracking-uri", uri]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)

    done = command("promote", "net", "--version", "2", "--json")
    assert json.loads(done.stdout)["version"] == "2", done.stderr
    assert done.stderr == ""
    run = chain(uri, file)
    for replaced in ("there was none before", "before, it was version 1"):  # the second makes no second version
        made = command("register", "mine", "--run", run, "--promote")
        assert made.stdout == f"mine: version 1 is candidate and the champion; {replaced}\n", made.stderr
        # No lines and no warnings of MLflow.
        assert [line for line in made.stderr.splitlines() if not line.startswith("register")] == []
    back = command("rollback", "net")
    assert (back.returncode, back.stdout) == (0, "net: version 1 is the champion; before, it was version 2\n")
    refused = command("register", "net", "--run", versions[0].tracking_run_id)
    assert refused.returncode == 2
    assert "has no file to register" in refused.stderr


@pytest.mark.parametrize("more", [[], ["--alias", "champion"]], ids=["no such run", "an alias that promotion gives"])
def test_a_wrong_registration_is_refused(uri: str, more: list[str]) -> None:
    refused = CliRunner().invoke(app, ["registry", "register", "net", "--run", "0" * 32, "--tracking-uri", uri, *more])
    assert isinstance(refused.exception, SpecError), refused.output
