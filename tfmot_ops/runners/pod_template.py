"""The pod of a step, as Kubernetes takes it. Importing this needs no provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.runners import image as images

#: The resource that NVIDIA's device plugin offers, and the key of the taint that keeps others off its nodes.
GPU_RESOURCE = "nvidia.com/gpu"
_GPU_TOLERATION = {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}
#: What may not be written, raised or used; of both containers.
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
    """What pods of steps are made from. Whatever Kubernetes has a form for is given in that form (camelCase mappings).

    Attributes:
        image: image of the target `cpu`.
        gpu_image: image of the target `gpu`.
        namespace: where pods are made; None is that of the connection, then the one Airflow runs in.
        device: what steps compute on; None is what each spec says. `gpu` takes `gpu_image`, asks for `gpus` of
            `nvidia.com/gpu`, tolerates their taint, and selects `gpu_node_selector`.
        gpus: how many GPUs a step asks for.
        fallback: `cpu` runs a step there when no node takes its GPU pod within `schedule_timeout_s`; None fails it.
        resources: requests and limits of the step's container.
        node_selector: labels of the nodes that steps run on.
        gpu_node_selector: labels of the GPU pool, on top.
        tolerations: of every step.
        gpu_tolerations: of GPU steps, on top: a pool's own taint, which a fallback to the CPU must not tolerate.
        service_account: of the pods; its token is never mounted, as a step has no business with the API.
        env: variables of the container; not for secrets.
        env_from: Secrets and ConfigMaps that become variables: `{"secretRef": {"name": "mlflow-credentials"}}`.
        volumes: further volumes; of data sets, for one.
        volume_mounts: where they are in the container.
        image_pull_policy: as in a pod.
        image_pull_secrets: names of Secrets.
        annotations: of the pods; an autoscaler must not move a step in the middle of a training.
        sidecar_image: of the container that hands the result to Airflow; None is the step's own image, which the node
            has already.
        tmp_size: size limit of the scratch space.
        deferrable: give the worker back while the pod runs; Airflow's triggerer watches it.
        logging_interval_s: how often the triggerer passes the log on.
        schedule_timeout_s: seconds until a pod has to have a node.
        startup_timeout_s: seconds until its containers have to run, pulling the image included.
        deadline_s: `activeDeadlineSeconds`: ends what nobody comes back for.
        kubernetes_conn_id: Airflow connection of the cluster; without it the service account of Airflow's own pod.
        config_file: kubeconfig instead of the connection's.
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
        """This template without its GPU, also without one that its `resources` name."""
        resources = {
            name: {resource: amount for resource, amount in values.items() if resource != GPU_RESOURCE}
            for name, values in self.resources.items()
        }
        return replace(self, device=Device.CPU, fallback=None, resources=resources)

    def with_memory(self, gib: float) -> Self:
        """This template with a limit of at least so many GiB, if it has one; its request grows in proportion."""
        from kubernetes.utils.quantity import parse_quantity

        limit = parse_quantity(self.resources.get("limits", {}).get("memory", "0"))
        factor = gib * 2**30 / float(limit) if limit else 1.0
        resources = {name: dict(values) for name, values in self.resources.items()}
        for values in resources.values() if factor > 1.0 else ():
            if "memory" in values:
                values["memory"] = f"{round(float(parse_quantity(values['memory'])) * factor / 2**20)}Mi"
        return replace(self, resources=resources)

    def wants_gpu(self, spec: StepSpec) -> bool:
        """Whether this template asks for a GPU for this step."""
        return (self.device or spec.device) == Device.GPU

    def pod(self, spec: StepSpec) -> dict[str, Any]:
        """The pod of a step as Kubernetes takes it, without the sidecar that Airflow's operator adds."""
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
            # As a limit; Kubernetes requests what it limits.
            resources.setdefault("limits", {})[GPU_RESOURCE] = str(self.gpus)
        return resources
