"""Secrets of URIs: in no output of the commands, no result, no run of MLflow and no message of an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tfmot_ops.cli.chain_table import print_summary
from tfmot_ops.contract import Tracking
from tfmot_ops.contract.refusal import kind_of, quoted, refusal
from tfmot_ops.errors import SpecError, StepFailedError, TfmotOpsError
from tfmot_ops.system.uri_secrets import address, has_secret, hide, hide_in

SECRET = "s3cretpw"  # noqa: S105 - made up
URIS = {
    "password": f"http://svc:{SECRET}@127.0.0.1:1",
    "token": f"https://{SECRET}@127.0.0.1:1/mlflow",
    "query": f"http://127.0.0.1:1/?token={SECRET}",
    "second of a query": f"http://127.0.0.1:1/?a=b&password={SECRET}",
    "fragment": f"http://127.0.0.1:1/#access_token={SECRET}",
    "signature": f"https://bucket.example/m.h5?X-Amz-Signature={SECRET}&X-Amz-Date=1",
    "database": f"postgresql://user:{SECRET}@127.0.0.1:1/db",
    "driver": f"mysql+pymysql://user:{SECRET}@127.0.0.1:1/db?charset=utf8",
    "slash": f"http://svc:a/{SECRET}@127.0.0.1:1",
    "at": f"http://svc:a@{SECRET}@127.0.0.1:1",
    "mark": f"http://svc:{SECRET}?x@127.0.0.1:1",
    "hash": f"http://svc:{SECRET}#x@127.0.0.1:1",
    "no port": f"postgresql://user:{SECRET}@host:port/db",
    "no host": f"http://svc:{SECRET}@[bad",
    "no scheme": f"nosuch://svc:{SECRET}@127.0.0.1",
    "empty user": f"http://:{SECRET}@127.0.0.1:1",
    "capitals": f"HTTP://svc:{SECRET}@127.0.0.1:1/?API_KEY={SECRET}",
}
PLAIN = [
    "http://127.0.0.1:5000/#/experiments/1/runs/2",
    "postgresql://mlflow@db/mlflow",
    "s3://bucket/MobileNet@any/model.h5",
    "abfss://container@account.dfs.core.windows.net/folder",
    "http://mlflow:5000/api/MobileNet@any",
    "sqlite:////tmp/a@b/mlflow.db",
    "npz:/data/a.npz and images:/data?size=32 at 12:30, mail me@example.org",
]


@pytest.mark.parametrize("uri", URIS.values(), ids=URIS)
def test_a_uri_is_shown_without_its_secret(uri):
    assert has_secret(uri)
    for text in (uri, f"cannot use '{uri}' now", f'{{"uri": "{uri}"}}', f"{uri}\n{uri}", f"({uri}, 2)"):
        assert SECRET not in hide(text)
    assert SECRET not in address(uri)
    assert SECRET not in hide(f"authentication failed for {SECRET}", uri), "known secrets are found without their URI"
    assert SECRET not in str(hide_in({"a": [uri, {"b": (uri,)}]}))
    assert SECRET not in str(TfmotOpsError(uri, required=uri, received=f"x {uri}", remedy=uri))
    assert SECRET not in repr(TfmotOpsError(uri)) + TfmotOpsError("", received=uri).received


@pytest.mark.parametrize("text", PLAIN)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert not has_secret(text)
    assert TfmotOpsError(text).summary == text


def test_a_password_is_found_decoded_and_encoded():
    uri = "http://svc:p%40ss%2Fword@host"
    for form in ("p%40ss%2Fword", "p@ss/word"):
        assert hide(f"login of svc failed: {form}", uri) == "login of svc failed: ***"
    assert hide("svc and host", uri) == "svc and host"


def command(folder, *arguments, **variables):
    env = {name: value for name, value in os.environ.items() if name != "TFMOT_OPS_TRACKING_URI"}
    env |= {"TFMOT_OPS_TRACKING_WAIT": "2", **variables}
    return subprocess.run(
        [sys.executable, "-m", "tfmot_ops.cli", *arguments],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


# One of each library that gets the URI: requests, SQLAlchemy, MLflow's registry of stores.
@pytest.mark.parametrize("kind", ["password", "database", "no scheme"])
def test_run_names_the_server_without_the_secret(tmp_path, kind):
    options = {"kind": "list", "what": "models"}
    spec = {"step_id": "list", "tracking": {"uri": URIS[kind]}, "options": options}
    (tmp_path / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    done = command(tmp_path, "run", "--spec", "spec.json", "--result", "result.json")
    result = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert done.returncode != 0
    assert json.loads(result)["error"]["message"]
    assert SECRET not in done.stdout + done.stderr + result


@pytest.mark.slow
def test_a_failing_command_leaves_no_secret_behind(tmp_path):
    (tmp_path / "tmp").mkdir()
    arguments = ["--model", "resnet8", "--dataset", "digits", "--recipe", "wi8_ai8", "--output", "out"]
    places = {"TMPDIR": str(tmp_path / "tmp"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    done = command(tmp_path, "optimize", *arguments, TFMOT_OPS_TRACKING_URI=URIS["query"], **places)
    assert done.returncode == 4, done.stderr
    assert SECRET not in done.stdout + done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [str(path) for path in left if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_optimize_doctor_and_sweep_print_no_secret(tmp_path):
    uri = URIS["password"]
    optimize = ["optimize", "--model", "resnet8", "--dataset", "digits", "--recipe", "wi8_ai8", "--tracking-uri", uri]
    for arguments in (optimize, ["doctor", "--tracking-uri", uri]):
        done = command(tmp_path, *arguments)
        assert done.returncode == 4, done.stderr
        assert "127.0.0.1:1" in done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr


def test_a_bug_is_told_without_the_secret(tmp_path):
    # The command's own function is exchanged for one that fails as no code foresees.
    code = (
        "import sys; from tfmot_ops.cli import app, execute\n"
        "def broken(source): raise KeyError('lost ' + sys.argv[-1])\n"
        "execute.read_spec = broken; app.main()"
    )
    uri = URIS["password"]
    arguments = [sys.executable, "-c", code, "run", "--result", "r.json", "--spec", uri]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    assert SECRET not in done.stderr


def test_a_secret_that_would_be_cut_is_hidden_first():
    message = str(StepFailedError("x" * 7990 + URIS["password"] + "y" * 100))
    assert "s3c" not in message
    assert len(message) < 8100


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["x", "a:", "://a:", "http://a:b", "?a", "&token", "?token=", "@", "http://"])
def test_a_hostile_text_is_searched_in_linear_time(part):
    hide(part * 10_000)
    quoted(part * 50_000)
    str(TfmotOpsError(part * 50_000))


def test_refusals_are_short_and_hold_no_secret():
    bomb: object = "lol"
    for _ in range(40):
        bomb = [bomb] * 10
    loop: list[object] = []
    loop.append(loop)
    for value in (bomb, loop, {"a": bomb}, "x" * 10**6, 10**5000, [10**5000], {"k" * 10**6: 1}, URIS["password"]):
        assert len(quoted(value)) < 1000
        assert len(kind_of(value)) < 100
    assert SECRET not in quoted({"tracking": {"uri": URIS["password"] + "x" * 1000}})
    with pytest.raises(ValueError, match="uri") as caught:
        Tracking.model_validate({"uri": 1, "experiment": {"uri": URIS["password"]}})
    assert SECRET not in str(caught.value) + str(refusal("spec", caught.value, "mend it"))
    assert isinstance(refusal("spec", caught.value, "mend it"), SpecError)


def test_the_summary_of_a_chain_prints_no_secret(capsys):
    print_summary([], URIS["password"], "tfmot_ops", None)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("MLflow: experiment tfmot_ops; open it with: /")
    assert last.endswith("/mlflow ui --backend-store-uri 'http://***@127.0.0.1:1'")
