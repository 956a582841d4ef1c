"""Builds the pod manifest of a step. Importing this needs no Airflow provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.runners import image as images

#: Resource name of NVIDIA's device plugin, and key of the taint that keeps other pods off GPU nodes.
GPU_RESOURCE = "nvidia.com/gpu"
_GPU_TOLERATION = {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}
#: Security context of both containers: read-only file system, no privilege escalation, no capabilities.
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
POD_SECURITY: dict[str, Any] = {
    "fsGroup": images.UID,
    "runAsGroup": images.UID,
    "runAsNonRoot": True,
    "runAsUser": images.UID,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def _default_resources() -> dict[str, dict[str, str]]:
    return {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "4Gi"}}


@dataclass(frozen=True)
class PodTemplate:
    """The settings from which pods of steps are built. Kubernetes objects are given as mappings in camelCase.

    Attributes:
        image: image for steps on the CPU (build target `cpu`).
        gpu_image: image for steps on a GPU (build target `gpu`).
        namespace: namespace of the pods; None takes the connection's namespace, then that of Airflow's pod.
        device: device of all steps; None takes the device in each spec. `gpu` uses `gpu_image`, requests `gpus` of
            `nvidia.com/gpu`, tolerates the taint of GPU nodes, and selects `gpu_node_selector`.
        gpus: number of GPUs that a step requests.
        fallback: `cpu` runs a step on the CPU if no node takes its GPU pod within `schedule_timeout_s`; None fails it.
        resources: requests and limits of the step's container.
        node_selector: labels of the nodes on which steps run.
        gpu_node_selector: further labels of the nodes for GPU steps.
        tolerations: tolerations of every step.
        gpu_tolerations: further tolerations of GPU steps; not used after a fallback to the CPU.
        service_account: service account of the pods; its token is never mounted, as a step does not use the API.
        env: environment variables of the container; not for secrets.
        env_from: Secrets and ConfigMaps whose entries become environment variables:
            `{"secretRef": {"name": "mlflow-credentials"}}`.
        volumes: further volumes; for example data sets.
        volume_mounts: mounts of `volumes` in the step's container.
        image_pull_policy: as in a pod.
        image_pull_secrets: names of Secrets.
        annotations: annotations of the pods; the default keeps the cluster autoscaler from evicting a step.
        sidecar_image: image of the container that passes the result to Airflow; None takes the step's image, which the
            node has pulled already.
        tmp_size: size limit of the scratch space.
        deferrable: defer the task while the pod runs, so that it occupies no worker slot.
        logging_interval_s: seconds between two fetches of the pod's log while the task is deferred.
        schedule_timeout_s: seconds within which a pod must be scheduled to a node.
        startup_timeout_s: seconds within which the pod's containers must run, including the pull of the image.
        deadline_s: the pod's `activeDeadlineSeconds`: Kubernetes ends the pod even if the Airflow task is gone.
        kubernetes_conn_id: Airflow connection of the cluster; None uses the service account of Airflow's pod.
        config_file: path of a kubeconfig, used instead of the connection's.
    """

    image: str = images.IMAGE
    gpu_image: str = images.GPU_IMAGE
    namespace: str | None = None
    device: Device | None = None
    gpus: int = 1
    fallback: Device | None = None
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=_default_resources, hash=False)
    node_selector: Mapping[str, str] = field(default_factory=dict, hash=False)
    gpu_node_selector: Mapping[str, str] = field(default_factory=lambda: {"nvidia.com/gpu.present": "true"}, hash=False)
    tolerations: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    gpu_tolerations: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    service_account: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    env_from: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    volumes: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    volume_mounts: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: Sequence[str] = ()
    annotations: Mapping[str, str] = field(
        default_factory=lambda: {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}, hash=False
    )
    sidecar_image: str | None = None
    tmp_size: str = "4Gi"
    deferrable: bool = False
    logging_interval_s: int = 10
    schedule_timeout_s: int = 300
    startup_timeout_s: int = 600
    deadline_s: int = images.DEADLINE_S
    kubernetes_conn_id: str | None = "kubernetes_default"
    config_file: str | None = None

    def on_cpu(self) -> Self:
        """A copy for steps on the CPU, with GPUs removed from `resources` too."""
        resources = {
            name: {resource: amount for resource, amount in values.items() if resource != GPU_RESOURCE}
            for name, values in self.resources.items()
        }
        return replace(self, device=Device.CPU, fallback=None, resources=resources)

    def with_memory(self, gib: float) -> Self:
        """A copy with a memory limit of at least `gib` GiB, if there is a limit; the request grows in proportion."""
        from kubernetes.utils.quantity import parse_quantity

        limit = parse_quantity(self.resources.get("limits", {}).get("memory", "0"))
        factor = gib * 2**30 / float(limit) if limit else 1.0
        resources = {name: dict(values) for name, values in self.resources.items()}
        for values in resources.values() if factor > 1.0 else ():
            if "memory" in values:
                values["memory"] = f"{round(float(parse_quantity(values['memory'])) * factor / 2**20)}Mi"
        return replace(self, resources=resources)

    def wants_gpu(self, spec: StepSpec) -> bool:
        """Whether this template requests a GPU for this step."""
        return (self.device or spec.device) == Device.GPU

    def pod(self, spec: StepSpec) -> dict[str, Any]:
        """The pod manifest of a step, without the XCom sidecar that Airflow's operator adds."""
        gpu = self.wants_gpu(spec)
        variables = images.environment(spec, Device.GPU if gpu else Device.CPU, self.env)
        body: dict[str, Any] = {
            "activeDeadlineSeconds": self.deadline_s,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "base",
                    "image": self.gpu_image if gpu else self.image,
                    "imagePullPolicy": self.image_pull_policy,
                    "args": list(images.ARGUMENTS),
                    "env": [{"name": name, "value": value} for name, value in variables.items()],
                    "envFrom": [*map(dict, self.env_from)],
                    "resources": self._resources(gpu),
                    "securityContext": CONTAINER_SECURITY,
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *map(dict, self.volume_mounts)],  # noqa: S108 - of the pod
                }
            ],
            "enableServiceLinks": False,
            "imagePullSecrets": [{"name": name} for name in self.image_pull_secrets],
            "nodeSelector": {**self.node_selector, **(self.gpu_node_selector if gpu else {})},
            "restartPolicy": "Never",
            "securityContext": POD_SECURITY,
            "serviceAccountName": self.service_account,
            "terminationGracePeriodSeconds": images.GRACE_S,
            "tolerations": [*map(dict, self.tolerations), *self._gpu_tolerations(gpu)],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": self.tmp_size}}, *map(dict, self.volumes)],
        }
        labels = {"app.kubernetes.io/name": "tfmot-ops", "app.kubernetes.io/component": "step"}
        metadata = {"namespace": self.namespace, "labels": labels, "annotations": dict(self.annotations)}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {name: value for name, value in metadata.items() if value},
            "spec": {name: value for name, value in body.items() if value not in (None, [], {})},
        }

    def _gpu_tolerations(self, gpu: bool) -> list[dict[str, Any]]:
        return [*map(dict, self.gpu_tolerations), dict(_GPU_TOLERATION)] if gpu else []

    def _resources(self, gpu: bool) -> dict[str, dict[str, str]]:
        resources = {name: dict(values) for name, values in self.resources.items()}
        if gpu:
            # Only a limit: Kubernetes sets the request of this resource to its limit.
            resources.setdefault("limits", {})[GPU_RESOURCE] = str(self.gpus)
        return resources
