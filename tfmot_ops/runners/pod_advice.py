"""What an error message on a pod says is required, and what to do, by the reason that Kubernetes gives."""

from __future__ import annotations

from typing import Final, NamedTuple


class Advice(NamedTuple):
    """`required` and `remedy` of an error message; `{runner}` is replaced by the step's runner."""

    required: str
    remedy: str


IMAGE: Final = Advice(
    "an image that the node has or can pull",
    "build (docker/Dockerfile) or push it, or correct `image`, `gpu_image`, `sidecar_image` or `image_pull_secrets`",
)
CONFIG: Final = Advice(
    "Secrets, ConfigMaps and arguments that a container can be made from",
    "make what is missing in the pods' namespace, or correct the runner's `env_from`, `volumes` or `volume_mounts`",
)
DEADLINE: Final = Advice(
    "a step that ends within the runner's `deadline_s`, {runner.deadline_s} s from the start of its pod",
    "raise `deadline_s`, or use fewer epochs or samples",
)
SLOW: Final = Advice(
    "containers that run within `startup_timeout_s`, {runner.startup_timeout_s} s, once their pod has a node",
    "check the pod's volumes, or raise `startup_timeout_s` if the image takes long to pull",
)
NODE: Final = Advice(
    "a node that runs, and has enough memory and disk, until the pod's end",
    "retry; if it happens again, request enough resources (the runner's `resources`), or check the node",
)
#: Kubernetes' reason for a waiting container or an ended pod -> advice in the error message.
BY_REASON: Final = {
    **dict.fromkeys(("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"), IMAGE),
    **dict.fromkeys(("CreateContainerConfigError", "CreateContainerError", "RunContainerError"), CONFIG),
    "DeadlineExceeded": DEADLINE,
}
