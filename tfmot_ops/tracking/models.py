"""Models in MLflow: log and load tf_keras models, download a model by URI, register a TFLite file."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Dataset
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from tfmot_ops.contract import RegisterOptions
from tfmot_ops.errors import ArtifactError
from tfmot_ops.system.versions import version
from tfmot_ops.tracking.children import PARENT_TAG
from tfmot_ops.tracking.client import MLFLOW_SCHEMES, download, quiet
from tfmot_ops.tracking.creating import create_registered_model, create_version
from tfmot_ops.tracking.patience import ARTIFACT_S, once

# Given explicitly: to infer the requirements, MLflow would load the model in a second process for half a minute.
_KERAS_REQUIREMENTS = ("tensorflow", "tf-keras", "tensorflow-model-optimization")
_TFLITE_REQUIREMENTS = ("ai-edge-litert", "numpy")

#: File in which `mlflow.tensorflow` pickles what is registered with Keras.
_PICKLE = "global_custom_objects.cloudpickle"
_SHA256_TAG = "tfmot_ops.sha256"
#: Tag of a version: the run of the chain that made its file.
CHAIN_TAG = "tfmot_ops.parent_run"


def is_model_uri(name: str) -> bool:
    """Whether a model's name is an MLflow URI."""
    return name.startswith(MLFLOW_SCHEMES)


class _KerasFlavor:
    """MLflow's tensorflow flavor without its validation, which would load the model without this package's classes."""

    @staticmethod
    def save_model(*, validate_serving_input: bool, **arguments: Any) -> None:
        """Save as `mlflow.tensorflow` does, but without a pickle, which would run code where it is loaded."""
        del validate_serving_input  # `Model.log` passes all its arguments on
        with quiet():
            import mlflow.tensorflow

            mlflow.tensorflow.save_model(**arguments)
        # The classes that are registered with Keras; `load_logged_model` finds them in the installed packages.
        (Path(arguments["path"]) / "data" / _PICKLE).unlink(missing_ok=True)


def log_keras_model(
    client: mlflow.MlflowClient, run_id: str, model: Any, example: Any, *, name: str, tags: Mapping[str, str]
) -> str:
    """Log a tf_keras model with signature and input example; it replaces the model of an earlier attempt.

    Args:
        client: connected to the tracking server.
        run_id: run that gets the model.
        model: tf_keras model, possibly with pruning wrappers or quantisers.
        example: a batch of its input, [samples, ...].
        name: of the model in MLflow's list of models; characters that MLflow refuses there become `_`.
        tags: of the model, so that a search can filter by them.

    Returns:
        Id of the logged model.
    """
    signature = infer_signature(example, model.predict_on_batch(example))

    def log() -> str:
        info = Model.log(
            artifact_path=None,
            name=re.sub(r"""[/:.%"'`]""", "_", name),
            flavor=_KerasFlavor,
            validate_serving_input=False,
            run_id=run_id,
            model=model,
            signature=signature,
            input_example=example,
            pip_requirements=_pinned(_KERAS_REQUIREMENTS),
            # HDF5, as Keras' default format loses the variables of quantisers.
            keras_model_kwargs={"save_format": "h5"},
            tags=dict(tags),
        )
        return str(info.model_id)

    return _once_forgetting(client, run_id, log)


def tell_file(client: mlflow.MlflowClient, model_id: str, sha256: str) -> None:
    """Tag a logged model with the sha256 of the TFLite file that was exported from it, for `model_of_file`."""
    client.set_logged_model_tags(model_id, {_SHA256_TAG: sha256})


def model_of_file(client: mlflow.MlflowClient, run_id: str, sha256: str) -> str | None:
    """Id of the logged model from which a TFLite file was exported, in the chain of a step's run.

    Args:
        client: connected to the tracking server.
        run_id: run of a step that has the file as its input.
        sha256: of the file.

    Returns:
        The id; None if no step of the same parent run made the file.
    """
    run = client.get_run(run_id)
    parent = run.data.tags.get(PARENT_TAG)
    if parent is None:
        return None
    wanted = f"tags.`{_SHA256_TAG}` = '{sha256}' and tags.`{PARENT_TAG}` = '{parent}'"
    newest_first = [{"field_name": "creation_time", "ascending": False}]
    found = client.search_logged_models([run.info.experiment_id], wanted, max_results=1, order_by=newest_first)
    return str(found[0].model_id) if found else None


def model_of_version(client: mlflow.MlflowClient, name: str, version: str) -> str | None:
    """Id of the logged model of a version of a registered model; None for a version without one."""
    found = client.get_model_version(name, version)
    # MLflow 3.17 leaves `model_id` empty when it reads a version from a database; the source names the model, too.
    named = re.fullmatch(r"models:/(m-\w+)", str(found.source))
    return found.model_id or (named[1] if named else None)


def data_of_model(client: mlflow.MlflowClient, model_id: str) -> Dataset | None:
    """The data set that a logged model was measured on, by name and digest only; None if it is not known."""
    metrics = client.get_logged_model(model_id).metrics or []
    for metric in sorted(metrics, key=lambda each: each.timestamp, reverse=True):
        if metric.dataset_name and metric.dataset_digest:
            return Dataset(metric.dataset_name, metric.dataset_digest, source_type="tfmot_ops", source="{}")
    return None


def _forget(client: mlflow.MlflowClient, run_id: str) -> None:
    """Delete the models of earlier attempts, also one that was created but never became an output of the run.

    One from which a version was registered stays, as the version would lose its files.
    """
    experiment = client.get_run(run_id).info.experiment_id
    registered = {version.model_id for version in client.search_model_versions(f"run_id = '{run_id}'")}
    for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if model.model_id not in registered:
            client.delete_logged_model(model.model_id)


def _once_forgetting(client: mlflow.MlflowClient, run_id: str, log: Callable[[], str]) -> str:
    """The id of the model that `log` logs to a run, in place of those of earlier attempts."""

    def again() -> str:
        _forget(client, run_id)
        return log()

    _forget(client, run_id)
    return once(log, again, "log model", client.tracking_uri, ARTIFACT_S)


def _pinned(packages: tuple[str, ...]) -> list[str]:
    return [f"{package}=={version(package)}" for package in packages]


def load_logged_model(uri: str, tracking_uri: str | None = None) -> Any:
    """Load a tf_keras model from MLflow, with the classes that pruned and quantised models need.

    Args:
        uri: `models:/...`, `runs:/<run_id>/<path>`, or any other MLflow URI.
        tracking_uri: MLflow server; None takes the current one.

    Returns:
        The model, with the same outputs as the logged model.

    Raises:
        ArtifactError: there is no model at this URI.
    """
    from tfmot_ops import core

    with tempfile.TemporaryDirectory() as folder:
        return core.load_model(fetch_model(uri, Path(folder), tracking_uri or mlflow.get_tracking_uri()))


def fetch_model(uri: str, folder: Path, tracking_uri: str) -> Path:
    """Copy the model at an MLflow URI into the local `folder`.

    Returns:
        Path of the Keras file or SavedModel folder inside.

    Raises:
        ArtifactError: there is none.
    """
    try:
        path = download(uri, folder, tracking_uri)
    except (MlflowException, OSError) as error:
        raise ArtifactError(
            f"cannot read model {uri}",
            required="a model on this tracking server",
            received=f"{type(error).__name__}: {error}",
            remedy="open the run or the registry in the MLflow UI and copy the URI from there",
        ) from error
    if path.is_file():
        return path
    # The layout of MLflow's tensorflow flavor: what Keras saved is `data/model`, with the suffix of its format.
    for candidate in ("data/model.h5", "data/model.keras", "data/model"):
        if (path / candidate).exists():
            return path / candidate
    raise ArtifactError(
        f"{uri} holds no Keras model",
        required="a model that was logged with mlflow.tensorflow",
        received=", ".join(sorted(entry.name for entry in path.iterdir())) or "an empty folder",
        remedy="log the model with mlflow.tensorflow.log_model(model, keras_model_kwargs={'save_format': 'h5'})",
    )


@quiet()
def register_tflite(
    client: mlflow.MlflowClient,
    run_id: str,
    tflite: Path,
    sha256: str,
    options: RegisterOptions,
    *,
    labels: Mapping[str, str],
    parent: str | None = None,
) -> str:
    """Register a TFLite file as a model that `mlflow.pyfunc` loads, under an alias.

    A file has one version for each chain that made it: a retry, and a later step of the same chain, find the version
    and only set the alias again.

    Args:
        client: connected to the tracking server.
        run_id: run of the step that registers.
        tflite: the file.
        sha256: of the file.
        options: of the step.
        labels: tags of the logged model, so that a search for models can filter by them.
        parent: run of the whole chain; None for a step of its own, whose run alone counts.

    Returns:
        The version's number.
    """
    tags = {_SHA256_TAG: sha256, **({CHAIN_TAG: parent} if parent else {})}
    # Not by name, as a name may hold the quotes of the filter.
    known = client.search_model_versions(f"tags.`{_SHA256_TAG}` = '{sha256}'")
    made = [
        str(version.version)
        for version in known
        if version.name == options.name
        and (version.run_id == run_id or (parent is not None and version.tags.get(CHAIN_TAG) == parent))
    ]
    version = made[0] if made else _new_version(client, run_id, tflite, options.name, tags=tags, labels=labels)
    client.set_registered_model_alias(options.name, options.alias, version)
    return version


def _new_version(
    client: mlflow.MlflowClient,
    run_id: str,
    tflite: Path,
    name: str,
    *,
    tags: Mapping[str, str],
    labels: Mapping[str, str],
) -> str:
    """Log a file as a model and register it.

    Not by one call of MLflow, which would create the version without its tag: a kill between the two would leave a
    version that the next attempt cannot know again.
    """
    import mlflow.pyfunc

    signature, example = _tflite_signature(tflite)

    def log() -> str:
        info = Model.log(
            artifact_path=None,
            name="tflite",
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(Path(__file__).with_name("tflite_pyfunc.py")),
            artifacts={"tflite": str(tflite)},
            pip_requirements=_pinned(_TFLITE_REQUIREMENTS),
            signature=signature,
            input_example=example,
            tags=dict(labels),
        )
        return str(info.model_id)

    model_id = _once_forgetting(client, run_id, log)
    try:
        create_registered_model(client, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = create_version(client, name, run_id=run_id, model_id=model_id, tags=tags)
    # As MLflow's own registration does: the model's page then leads to the version.
    link = json.dumps([{"name": name, "version": version}])
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: link})
    return version


def _tflite_signature(tflite: Path) -> Any:
    """(MLflow's signature, an input example) of a file: by name for several inputs or outputs."""
    from ai_edge_litert.interpreter import Interpreter
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    run = Interpreter(model_path=str(tflite), num_threads=1).get_signature_runner()

    def spec(name: str | None, tensor: dict[str, Any]) -> TensorSpec:
        # Quantised values are real ones outside; whole numbers that are none, such as words, stay whole.
        quantized = bool(tensor["quantization"][0])
        kind = np.dtype(np.float32 if quantized else tensor["dtype"])
        return TensorSpec(kind, (-1, *map(int, tensor["shape_signature"][1:])), name)

    def schema(details: dict[str, dict[str, Any]]) -> Schema:
        named = len(details) > 1
        return Schema([spec(name if named else None, tensor) for name, tensor in details.items()])

    signature = ModelSignature(schema(run.get_input_details()), schema(run.get_output_details()))
    zeros = {
        each.name: np.zeros((1, *(max(1, size) for size in each.shape[1:])), each.type)
        for each in signature.inputs.inputs
    }
    return signature, zeros.get(None, zeros)
