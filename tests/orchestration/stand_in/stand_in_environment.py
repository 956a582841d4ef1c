# ruff: noqa: T201 - a command prints
"""Stands in for `tfmot-ops run`: answers with digests of the credentials in its environment, and other places."""

import argparse
import hashlib
import os
from pathlib import Path

from tfmot_ops.contract import Status, StepResult, StepSpec

CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("--spec", type=Path)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--die-with-parent", action="store_true")
    arguments = parser.parse_args()
    spec = StepSpec.model_validate_json(arguments.spec.read_bytes())
    given = {name: os.environ.get(name) for name in CREDENTIALS}
    # Not the name of the user, whose two letters are in many words.
    secrets = [given[name] for name in CREDENTIALS if given[name] and "USERNAME" not in name]
    # Airflow's own way to define a connection by a variable, which the test uses, is how the secret comes in.
    places = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")}
    places = {name: value for name, value in places.items() if name not in CREDENTIALS}
    places["the command line"] = Path("/proc/self/cmdline").read_text()
    places["the spec"] = arguments.spec.read_text()
    print("looked at my command line and spec", flush=True)
    digests = {
        name: None if text is None else hashlib.sha256(text.encode()).hexdigest() for name, text in given.items()
    }
    found = [place for place, text in places.items() if any(secret in text for secret in secrets)]
    result = StepResult(
        step_id=spec.step_id,
        kind=spec.options.kind,
        spec_sha256=spec.sha256(),
        status=Status.OK,
        parameters={"environment": digests, "others_with_a_credential": found},
        tracking_run_id="0" * 32,
    )
    arguments.result.write_text(result.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
