"""`tfmot-ops doctor` as a health check calls it, and a spec that comes in a variable, as a container gets it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

COMMAND = [sys.executable, "-m", "tfmot_ops.cli"]
TRACKING = ("TFMOT_OPS_TRACKING_URI", "MLFLOW_TRACKING_URI")


def run(*arguments, **env):
    clean = {name: value for name, value in os.environ.items() if name not in TRACKING}
    return subprocess.run([*COMMAND, *arguments], env=clean | env, capture_output=True, text=True, check=False)


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """Port of an HTTP server that answers /health as MLflow does."""
    with HTTPServer(("127.0.0.1", 0), Healthy) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http.server_port
        http.shutdown()


@pytest.mark.slow
def test_a_place_that_is_fit_says_what_is_there(server):
    done = run("doctor", "--json", "--tracking-uri", f"http://me:secret@127.0.0.1:{server}")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"]
    found = {finding["name"]: finding["value"] for finding in answer["findings"]}
    assert "tf-keras 2." in found["versions"]
    assert found["keras"].startswith("tf.keras is tf_keras 2.")
    assert "CPU:0" in found["devices"]
    assert found["tracking"] == f"http://127.0.0.1:{server} answers 200"
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_missing_is_named_with_a_remedy():
    # Port 9 discards, where it is served at all. No GPU is visible, also where there is one.
    done = run("doctor", "--device", "gpu", TFMOT_OPS_TRACKING_URI="http://127.0.0.1:9", CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 4
    assert "FAIL devices   no GPU: CPU:0" in done.stdout
    assert "FAIL tracking  http://127.0.0.1:9 does not answer" in done.stdout
    assert done.stdout.count("remedy: ") == 2
    assert "ok   keras" in done.stdout


@pytest.mark.slow
def test_a_look_that_fails_unforeseen_has_a_remedy_of_its_own():
    done = run("doctor", "--tracking-uri", "http://[no-address")
    assert done.returncode == 4
    assert "FAIL tracking  ValueError" in done.stdout
    assert "remedy: correct the tracking URI" in done.stdout


@pytest.mark.slow
def test_a_spec_may_come_in_a_variable(tmp_path):
    spec = {"step_id": "list", "output_uri": str(tmp_path), "options": {"kind": "list", "what": "recipes"}}
    done = run("run", "--spec", "env:SPEC", "--result", str(tmp_path / "r.json"), SPEC=json.dumps(spec))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "ok"


def test_a_variable_that_is_missing_is_named(tmp_path):
    done = run("run", "--spec", "env:NO_SUCH_SPEC", "--result", str(tmp_path / "r.json"))
    assert done.returncode == 2
    assert "required: a variable NO_SUCH_SPEC" in done.stderr
