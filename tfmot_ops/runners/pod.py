"""The provider's pod operator with what a step adds to it. Importing this needs the extra `kubernetes`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager, PodPhase
from airflow.providers.cncf.kubernetes.utils.xcom_sidecar import PodDefaults
from airflow.sdk.exceptions import AirflowTaskTimeout
from kubernetes.client import ApiException

from tfmot_ops.contract import Device, StepResult, StepSpec
from tfmot_ops.errors import StepFailedError, TfmotOpsError
from tfmot_ops.runners import image as images
from tfmot_ops.runners.base import Log, judge, peek

if TYPE_CHECKING:
    from kubernetes.client.models import V1Pod

    from tfmot_ops.runners.kubernetes import KubernetesRunner

_SIDECAR_RESOURCES = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}
_NOT_FOUND = 404


class StepPodManager(PodManager):
    """The provider's, for which a pod that is over runs nothing any more.

    An agent of an old cluster leaves `running` in the containers of a pod whose deadline is over, and the provider
    would follow their log for ever.
    """

    def container_is_running(self, pod: V1Pod, container_name: str) -> bool:
        """Whether it runs, in a pod that is not over."""
        return not self._is_over(pod) and super().container_is_running(pod, container_name)

    def container_is_terminated(self, pod: V1Pod, container_name: str) -> bool:
        """Whether it has ended, with its pod or alone."""
        return self._is_over(pod) or super().container_is_terminated(pod, container_name)

    def _is_over(self, pod: V1Pod) -> bool:
        return self.read_pod(pod).status.phase in PodPhase.terminal_states


class StepPodOperator(KubernetesPodOperator):
    """A pod whose result is kept for its step, and that is looked at once more before it is deleted.

    Attributes:
        answer: what the step left in its result file.
        seen: the pod as it was at its end; None when it was gone by then.
    """

    answer: bytes | None = None
    seen: V1Pod | None = None

    def __init__(self, *, sidecar_image: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sidecar_image = sidecar_image

    @cached_property
    def pod_manager(self) -> StepPodManager:
        """What the provider follows the pod with."""
        return StepPodManager(kube_client=self.client, callbacks=self.callbacks)

    def build_pod_request_obj(self, context: Any = None, *, dry_run: bool = False) -> V1Pod:
        """The provider's pod, with our image in its sidecar and limits on it, as a quota asks for."""
        pod = super().build_pod_request_obj(context, dry_run=dry_run)
        for container in pod.spec.containers:
            if container.name == PodDefaults.SIDECAR_CONTAINER_NAME:
                container.image = self.sidecar_image
                container.resources = _SIDECAR_RESOURCES
        return pod

    def extract_xcom(self, pod: V1Pod, *, ignore_kill_failure: bool = True) -> None:
        """Keep the result, and give the provider none: it would make the answer of a failed step an XCom."""
        answer = super().extract_xcom(pod, ignore_kill_failure=ignore_kill_failure)
        self.answer = json.dumps(answer).encode() if answer is not None else None

    def cleanup(self, *args: Any, **kwargs: Any) -> None:
        """Look at the pod, which says best why it failed, before the provider deletes it."""
        self.look()
        super().cleanup(*args, **kwargs)

    def look(self) -> None:
        """Set `seen`."""
        pod = self.pod or self.pod_request_obj
        if pod is None:
            return
        try:
            self.seen = self.client.read_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise
            self.seen = None


class PodStep:
    """A pod; see `RunningStep`. When it is deferred, `wait` leaves with Airflow's TaskDeferred."""

    def __init__(
        self,
        runner: KubernetesRunner,
        spec: StepSpec,
        context: Mapping[str, Any] | None,
        log: Log,
        event: Mapping[str, Any] | None,
    ) -> None:
        self._runner = runner
        self._spec = spec
        # The provider's operator asks for Airflow's own type.
        self._context: Any = context or _outside_airflow(spec)
        self._log = log
        self._event = event
        self._operator = self._make(runner)
        self.result: StepResult | None = None

    def wait(self) -> StepResult:
        """Follow the pod to its end; see `RunningStep.wait`."""
        try:
            self._run()
        except Exception as error:
            if (timeout := _timeout_behind(error)) is not None:
                raise timeout from None
            if self._may_fall_back():
                self._log(f"no node takes the GPU pod ({self._unschedulable()}): the runner falls back to the CPU")
                self._operator, self._event = self._make(self._runner.on_cpu()), None
                return self.wait()
            self.result = peek(self._operator.answer)
            raise self._failure(error) from error
        self.result = peek(self._operator.answer)
        return judge(self._operator.answer, self._spec, 0)

    def kill(self) -> None:
        """Delete the pod, with a grace period."""
        self._operator.on_kill()

    def _run(self) -> None:
        # Not `execute`: Airflow's guard takes an operator inside an operator for a mistake, and warns.
        if self._event is not None:
            self._operator.trigger_reentry(self._context, dict(self._event))
        elif self._runner.deferrable:
            self._operator.execute_async(self._context)
        else:
            self._operator.execute_sync(self._context)

    def _make(self, runner: KubernetesRunner) -> StepPodOperator:
        from tfmot_ops.runners.kubernetes import CONTAINER_SECURITY

        template = runner.pod(self._spec)
        task = self._context.get("task")
        return StepPodOperator(
            task_id=self._spec.step_id,
            name=StepPodOperator._set_name(f"tfmot-ops-{self._spec.step_id}"[:200]),  # noqa: SLF001 - execute does
            sidecar_image=runner.sidecar_image or template["spec"]["containers"][0]["image"],
            pod_template_dict=template,
            # The template has all the rest; these the operator would overwrite, or wants to know itself.
            namespace=runner.namespace,
            termination_grace_period=images.GRACE_S,
            termination_message_policy="FallbackToLogsOnError",
            xcom_sidecar_container_security_context=CONTAINER_SECURITY,
            do_xcom_push=True,
            kubernetes_conn_id=runner.kubernetes_conn_id,
            config_file=runner.config_file,
            schedule_timeout_seconds=runner.schedule_timeout_s,
            startup_timeout_seconds=runner.startup_timeout_s,
            startup_check_interval_seconds=1,
            container_name_log_prefix_enabled=False,
            log_pod_spec_on_failure=False,
            deferrable=runner.deferrable,
            logging_interval=runner.logging_interval_s if runner.deferrable else None,
            # In a deferral the trigger has to keep the time.
            execution_timeout=task.execution_timeout if task is not None else None,
        )

    def _may_fall_back(self) -> bool:
        asked = self._runner.wants_gpu(self._spec) and self._runner.fallback is Device.CPU
        return asked and self._unschedulable() is not None

    def _unschedulable(self) -> str | None:
        """The scheduler's reason, when no node takes the pod."""
        pod = self._operator.seen
        for condition in (pod.status.conditions or ()) if pod is not None else ():
            if condition.type == "PodScheduled" and condition.status != "True":
                return str(condition.message)
        return None

    def _failure(self, error: Exception) -> TfmotOpsError:
        """The exception that stands for a pod that failed."""
        pod, step = self._operator.seen, self._spec.step_id
        if pod is None:
            return self._without_pod(error)
        if (reason := self._unschedulable()) is not None:
            return StepFailedError(
                f"no node takes the pod of step {step}",
                required=f"a node with room for it within {self._runner.schedule_timeout_s} s",
                received=reason,
                remedy="add a node, ask for less (the runner's resources and selectors), or set its `fallback`",
            )
        if pod.status.reason:  # DeadlineExceeded, Evicted, NodeLost, Preempting
            return StepFailedError(
                f"the pod of step {step} was ended: {pod.status.reason}", received=str(pod.status.message)
            )
        for state in _states(pod):
            if state.terminated is not None and state.terminated.exit_code != 0:
                return self._ended(state.terminated)
            if state.waiting is not None:
                return StepFailedError(
                    f"the pod of step {step} did not start: {state.waiting.reason}",
                    required="an image that the node has or can pull",
                    received=str(state.waiting.message),
                    remedy="build or push the image (docker/Dockerfile), or correct the runner's `image`",
                )
        return StepFailedError(
            f"the pod of step {step} was lost sight of",
            required="a cluster that answers about it until its end",
            # What the trigger saw says more than what came of it: a time-out, for one.
            received=str((self._event or {}).get("message") or _first_cause(error)),
            remedy="retry; if it happens again, look at the node's agent and at the API server",
        )

    def _ended(self, terminated: Any) -> TfmotOpsError:
        if terminated.reason == "OOMKilled":
            return StepFailedError(
                f"step {self._spec.step_id} was ended for lack of memory (OOMKilled)",
                required="a step that fits the memory limit of the runner's `resources`",
                received=f"exit code {terminated.exit_code}",
                remedy="raise the limit, or give the step a smaller batch_size",
            )
        try:
            judge(self._operator.answer, self._spec, terminated.exit_code, (terminated.message or "").splitlines())
        except TfmotOpsError as failure:
            return failure
        return StepFailedError(f"the pod of step {self._spec.step_id} failed", received=str(terminated.reason))

    def _without_pod(self, error: Exception) -> TfmotOpsError:
        name = self._event["name"] if self._event else self._operator.pod and self._operator.pod.metadata.name
        if name is None:
            return StepFailedError(
                f"the pod of step {self._spec.step_id} could not be made",
                required="a cluster that answers and takes the pod",
                received=f"{type(error).__name__}: {error}",
                remedy="look at the connection, the service account's role, the quota, and the runner's arguments",
            )
        return StepFailedError(
            f"the pod of step {self._spec.step_id} is gone",
            required="a pod that is there until its result was read",
            received=f"no pod {name}; somebody else deleted it",
            remedy="retry; look for a node that went away, or for what cleans up in the namespace",
        )


def _outside_airflow(spec: StepSpec) -> dict[str, Any]:
    """What the provider wants of a task's context, to name the pod and to find it again, where there is no task."""
    task = SimpleNamespace(dag_id="none", task_id=spec.step_id, map_index=-1, try_number=1, xcom_push=lambda **_: None)
    return {"ti": task, "run_id": uuid4().hex, "dag": None}


def _states(pod: V1Pod) -> Iterator[Any]:
    """States of the containers, the step's first."""
    found = sorted(pod.status.container_statuses or (), key=lambda status: status.name != "base")
    return (status.state for status in found)


def _timeout_behind(error: BaseException | None) -> BaseException | None:
    """Airflow's time-out, which the provider's tidying hides behind an error of its own."""
    while error is not None:
        if isinstance(error, AirflowTaskTimeout):
            return error
        error = error.__context__
    return None


def _first_cause(error: BaseException) -> str:
    """What the provider met before its tidying met other things."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {getattr(error, 'body', None) or error}"
