"""The data set of a step as MLflow's dataset input: name, source, digest and schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from mlflow.types import Schema, TensorSpec
from pydantic import JsonValue

from tfmot_ops.system.uri_secrets import hide
from tfmot_ops.tracking.labels import label

#: Context of a step that trains, and of one that measures.
TRAINING, EVALUATION = "training", "evaluation"
_CONTEXT_TAG = "mlflow.data.context"
#: Digits of the digest. MLflow takes 36, and shows them in a narrow column; the parameter `dataset_digest` has all.
_DIGEST = 12
# MLflow's name for a file or folder, which its pages show with the path; the other sources are names of this package.
_LOCAL, _OWN = "local", "tfmot_ops"
_TENSOR = re.compile(r"(?P<dtype>\w+) \[(?P<shape>[^\]]*)\]")


def dataset_of(parameters: Mapping[str, JsonValue]) -> Dataset | None:
    """The data set that the parameters of a step's result name; None if they name none.

    Args:
        parameters: `dataset`, `dataset_digest` and, where it is known, `dataset_schema`, which maps the name of a
            tensor to its type and shape: `{"x": "float32 [N, 8, 8, 1]", "y": "int64 [N]"}`.
    """
    name, digest = parameters.get("dataset"), parameters.get("dataset_digest")
    if not isinstance(name, str) or not isinstance(digest, str):
        return None
    samples = parameters.get("dataset_train_samples")
    return Dataset(
        name=label(name),
        digest=digest[:_DIGEST],
        **_source(name),
        schema=_schema(parameters.get("dataset_schema")),
        profile=json.dumps({"num_rows": samples}) if isinstance(samples, int) else None,
    )


def log_dataset(client: mlflow.MlflowClient, run_id: str, dataset: Dataset, context: str) -> None:
    """Make a data set an input of a run; one that is its input already stays as it is.

    Raises:
        MlflowException: MLflow cannot be used.
    """
    inputs = [DatasetInput(dataset, [InputTag(_CONTEXT_TAG, context)])]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException:
        # Another process may have recorded the same data set in the experiment at the same time.
        client.log_inputs(run_id, inputs)


def _source(name: str) -> dict[str, str]:
    _, _, path = name.partition(":")
    if path.startswith("/"):
        return {"source_type": _LOCAL, "source": json.dumps({"uri": hide(path)})}
    return {"source_type": _OWN, "source": json.dumps({"uri": hide(name)})}


def _schema(tensors: JsonValue) -> str | None:
    """MLflow's JSON of a schema of tensors, in which `y` and names such as `y.box` are targets."""
    if not isinstance(tensors, Mapping):
        return None
    specs = {name: _tensor(name, text) for name, text in tensors.items() if isinstance(text, str)}
    targets = [spec for name, spec in specs.items() if spec is not None and re.split(r"[^a-z]", name)[0] == "y"]
    features = [spec for spec in specs.values() if spec is not None and spec not in targets]
    if not features:
        return json.dumps(dict(tensors))
    schema = {"features": Schema(features).to_json(), "targets": Schema(targets).to_json() if targets else None}
    return json.dumps({"mlflow_tensorspec": schema})


def _tensor(name: str, text: str) -> TensorSpec | None:
    found = _TENSOR.fullmatch(text.strip())
    if found is None:
        return None
    sizes = [size.strip() for size in found["shape"].split(",") if size.strip()]
    try:
        dtype = np.dtype("str" if found["dtype"] == "string" else found["dtype"])
        return TensorSpec(dtype, tuple(int(size) if size.isdigit() else -1 for size in sizes), name)
    except (TypeError, MlflowException):
        return None
