"""The Kubernetes Secret with the variables that a step's pod gets and nobody reads in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from kubernetes.client import (
    ApiException,
    V1EnvFromSource,
    V1ObjectMeta,
    V1OwnerReference,
    V1Secret,
    V1SecretEnvSource,
)

from tfmot_ops.errors import SpecError

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api
    from kubernetes.client.models import V1Pod


class SecretRefusedError(SpecError):
    """Airflow's service account may not create the Secret of a pod."""


def refer_to_secret(pod: V1Pod, container: str) -> None:
    """Have a container take its variables from the Secret that `create_secret` creates for its pod.

    The Secret stands first: of two sources with the same variable Kubernetes takes the later one, so that the runner's
    own `env_from` wins.
    """
    source = V1EnvFromSource(secret_ref=V1SecretEnvSource(name=_name(pod)))
    for each in pod.spec.containers:
        if each.name == container:
            each.env_from = [source, *(each.env_from or ())]


def create_secret(client: CoreV1Api, pod: V1Pod, variables: Mapping[str, str]) -> None:
    """Create the Secret of a pod, unless it is there; Kubernetes deletes it with the pod, which owns it.

    The pod is created first, and its container waits for the Secret. If this process is killed between the two, a
    retry finds the pod and creates the Secret. The other order could leave a Secret that nothing owns.

    Args:
        client: connected to the cluster.
        pod: as the cluster has it, with its uid.
        variables: name -> value.

    Raises:
        SecretRefusedError: the service account may not create Secrets.
        ApiException: the cluster refuses the Secret for another reason.
    """
    owner = V1OwnerReference(api_version="v1", kind="Pod", name=pod.metadata.name, uid=pod.metadata.uid)
    metadata = V1ObjectMeta(name=_name(pod), labels=pod.metadata.labels, owner_references=[owner])
    try:
        client.create_namespaced_secret(
            pod.metadata.namespace, V1Secret(metadata=metadata, string_data=dict(variables))
        )
    except ApiException as error:
        if error.status == HTTPStatus.CONFLICT:
            return  # of an earlier attempt, whose pod this attempt takes up
        if error.status not in {HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED}:
            raise
        raise SecretRefusedError(
            "the cluster does not let Airflow create the Secret with MLflow's password or token for the step's pod",
            required=f"a role with `create` on `secrets` in the namespace {pod.metadata.namespace}",
            received=f"HTTP {error.status}",
            remedy="grant it, or leave login, password and token out of the MLflow connection, and name a Secret with "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the runner's env_from",
        ) from None


def _name(pod: V1Pod) -> str:
    return f"{pod.metadata.name}-env"
