"""Atomic writing of artifacts of an MLflow run: an artifact is either complete or missing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tfmot_ops.system import files

if TYPE_CHECKING:
    import mlflow


def put_file(client: mlflow.MlflowClient, run_id: str, path: Path, folder: str = "") -> None:
    """Store a local file as an artifact of a run.

    For a local artifact folder, MLflow copies directly to the final name, so a kill or a full disk would leave a
    truncated file. Tracking servers and object stores show a file only once it is complete.

    Args:
        client: connected to the tracking server.
        run_id: run that gets the file.
        path: the file; it keeps its name.
        folder: folder among the artifacts, the top one when empty.

    Raises:
        MlflowException, OSError: the artifacts cannot be written.
    """
    root = urlsplit(client.get_run(run_id).info.artifact_uri)
    if root.scheme in {"", "file"}:
        files.copy(path, Path(url2pathname(root.path)) / folder / path.name)
    else:
        client.log_artifact(run_id, str(path), folder or None)


def put_json(client: mlflow.MlflowClient, run_id: str, document: Any, name: str) -> None:
    """Store a JSON document as an artifact of a run, see `put_file`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(json.dumps(document, indent=2), encoding="utf-8")
        put_file(client, run_id, path)


def put_artifacts(uri: str, run_id: str, paths: Sequence[Path]) -> None:
    """Store local files as artifacts of a run, each under its own name; see `put_file`.

    Args:
        uri: MLflow tracking URI.
        run_id: run that gets the files.
        paths: the files.
    """
    from tfmot_ops.tracking.patience import PatientClient

    client = PatientClient(tracking_uri=uri)
    for path in paths:
        put_file(client, run_id, path)
