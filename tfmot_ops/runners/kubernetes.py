"""Runs each step in a pod, through the KubernetesPodOperator of Airflow's Kubernetes provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfmot_ops.contract import StepSpec
from tfmot_ops.runners.base import Log
from tfmot_ops.runners.image import missing_provider
from tfmot_ops.runners.pod_template import PodTemplate

if TYPE_CHECKING:
    from tfmot_ops.runners.pod import PodStep


@dataclass(frozen=True)
class KubernetesRunner(PodTemplate):
    """Runs each step in a hardened pod; its arguments are the attributes of `PodTemplate`."""

    def start(
        self, spec: StepSpec, context: Mapping[str, Any] | None, log: Log, *, secrets: Mapping[str, str] | None = None
    ) -> PodStep:
        """Prepare the pod; `wait` creates and follows it with one call of the provider's operator."""
        return self._step(spec, context, log, None, secrets=secrets)

    def resume(
        self,
        spec: StepSpec,
        context: Mapping[str, Any],
        log: Log,
        event: Mapping[str, Any],
        *,
        secrets: Mapping[str, str] | None = None,
    ) -> PodStep:
        """Resume a pod after a deferral; see `ResumableRunner`."""
        return self._step(spec, context, log, event, secrets=secrets)

    def _step(
        self,
        spec: StepSpec,
        context: Mapping[str, Any] | None,
        log: Log,
        event: Mapping[str, Any] | None,
        *,
        secrets: Mapping[str, str] | None,
    ) -> PodStep:
        try:
            from tfmot_ops.runners.pod import PodStep
        except ImportError as error:
            raise missing_provider("kubernetes") from error
        return PodStep(self, spec, context, log, event, secrets=secrets or {})
