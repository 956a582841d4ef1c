"""What a step read and wrote, for OpenLineage; importing this needs none of its packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tfmot_ops.contract import DATASET_OPTIONS, RegisterOptions, StepResult, StepSpec
from tfmot_ops.system.uri_secrets import address, hide

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

#: Namespace of what this package knows by name: built-in data sets and models.
NAMESPACE = "tfmot_ops"
_MLFLOW = ("runs:/", "models:/", "mlflow-artifacts:/")


@dataclass(frozen=True)
class Place:
    """A data set, a model or a file, named as OpenLineage names data sets.

    Attributes:
        namespace: of the store: `s3://bucket`, `file`, the address of MLflow, or `tfmot_ops` for what is built in.
        name: in the store, without a secret.
        version: digest of its content, or number of a version; None if it is not known.
    """

    namespace: str
    name: str
    version: str | None = None


@dataclass(frozen=True)
class Lineage:
    """What a step read and wrote.

    Attributes:
        inputs: its data set, its initial model and the artifacts of other steps.
        outputs: its artifacts, and the version of a registered model.
        run_id: of its MLflow run; None without one.
        server: address of MLflow; empty without one.
    """

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...] = ()
    run_id: str | None = None
    server: str = ""


def lineage_of(spec: StepSpec, result: StepResult | None) -> Lineage:
    """The lineage of a step.

    Args:
        spec: the step.
        result: how it ended; None for a step without a result, which has inputs only.
    """
    server = address(spec.tracking.uri) if spec.tracking else ""
    options, parameters = spec.options, result.parameters if result is not None else {}
    inputs = []
    data = getattr(options, "dataset", None)
    if isinstance(data, str):
        inputs.append(_data_place(data, parameters))
    if options.named_model:
        inputs.append(_place(options.named_model, server))
    inputs += [_place(artifact.uri, server, artifact.sha256) for artifact in spec.inputs.values()]
    if result is None:
        return Lineage(tuple(inputs), server=server)
    outputs = [_place(artifact.uri, server, artifact.sha256) for artifact in result.outputs.values()]
    version = parameters.get("registered_version")
    if isinstance(options, RegisterOptions) and version is not None:
        outputs.append(Place(server, f"models:/{options.name}", str(version)))
    return Lineage(tuple(inputs), tuple(outputs), result.tracking_run_id, server)


def facets_of(lineage: Lineage) -> OperatorLineage | None:
    """The lineage as Airflow's OpenLineage provider takes it; None where the provider is not installed."""
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.event_v2 import Dataset
        from openlineage.client.facet_v2 import dataset_version_dataset, external_query_run
    except ImportError:
        return None

    def dataset(place: Place) -> Any:
        facets: dict[str, Any] = {}
        if place.version is not None:
            facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=place.version)
        return Dataset(namespace=place.namespace, name=place.name, facets=facets)

    run_facets: dict[str, Any] = {}
    if lineage.run_id is not None:
        query = external_query_run.ExternalQueryRunFacet(externalQueryId=lineage.run_id, source=lineage.server)
        run_facets["externalQuery"] = query
    return OperatorLineage(
        inputs=[dataset(place) for place in lineage.inputs],
        outputs=[dataset(place) for place in lineage.outputs],
        run_facets=run_facets,
    )


def _data_place(data: str, parameters: Mapping[str, Any]) -> Place:
    """The place of a data set's option: `npz:/data/a.npz?test=b` is the file `/data/a.npz`."""
    digest = parameters.get("dataset_digest")
    kind, colon, rest = data.partition(":")
    options = DATASET_OPTIONS.search(rest)
    path = rest[: options.start()] if options else rest
    found = _place(path, "") if colon and "/" in path and not kind.startswith("/") else _place(data, "")
    return Place(found.namespace, found.name, digest if isinstance(digest, str) else None)


def _place(uri: str, server: str, version: str | None = None) -> Place:
    if uri.startswith(_MLFLOW):
        return Place(server or NAMESPACE, hide(uri), version)
    if "://" in uri and not uri.startswith("file:"):
        bare = address(uri)
        scheme, _, rest = bare.partition("://")
        store, _, name = rest.partition("/")
        return Place(f"{scheme}://{store}", name or "/", version)
    path = urlsplit(uri).path if uri.startswith("file:") else uri
    if "/" in path:
        return Place("file", hide(path), version)
    return Place(NAMESPACE, hide(uri), version)
