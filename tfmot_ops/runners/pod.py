"""Subclass of the provider's pod operator that runs one step. Importing this needs the extra `kubernetes`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import KubernetesApiException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager, PodPhase
from airflow.providers.cncf.kubernetes.utils.xcom_sidecar import PodDefaults
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from tfmot_ops.contract import Device, StepResult, StepSpec
from tfmot_ops.errors import StepFailedError, TfmotOpsError
from tfmot_ops.runners import image as images
from tfmot_ops.runners import pod_advice
from tfmot_ops.runners.base import Log, judge, peek
from tfmot_ops.runners.pod_secret import SecretRefusedError, create_secret, refer_to_secret
from tfmot_ops.runners.pod_template import CONTAINER_SECURITY, GPU_RESOURCE, PodTemplate

if TYPE_CHECKING:
    from kubernetes.client.models import V1Pod

_SIDECAR_RESOURCES = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}
_NOT_FOUND = 404
#: Exceptions for an API server that refuses a request or does not answer.
_API_ERRORS = (ApiException, KubernetesApiException, HTTPError)


class StepPodManager(PodManager):
    """The provider's pod manager, except that all containers of a finished pod count as terminated.

    After a pod's deadline, the kubelet of an old cluster still reports its containers as `running`, and the provider
    would follow their log forever.
    """

    def container_is_running(self, pod: V1Pod, container_name: str) -> bool:
        """Whether the container runs and its pod has not finished."""
        return not self._is_over(pod) and super().container_is_running(pod, container_name)

    def container_is_terminated(self, pod: V1Pod, container_name: str) -> bool:
        """Whether the container has ended or its pod has finished."""
        return self._is_over(pod) or super().container_is_terminated(pod, container_name)

    def _is_over(self, pod: V1Pod) -> bool:
        return self.read_pod(pod).status.phase in PodPhase.terminal_states


class StepPodOperator(KubernetesPodOperator):
    """A pod operator that keeps the step's result, and reads the pod's final state before the pod is deleted.

    The step's container gets `variables` from a Secret of its own, see `create_secret`.

    Attributes:
        answer: content of the step's result file.
        seen: the pod in its final state; None if it could not be read.
        unread: the exception if the pod could not be read, for example the API server's 404.
    """

    answer: bytes | None = None
    seen: V1Pod | None = None
    unread: Exception | None = None

    def __init__(self, *, sidecar_image: str, variables: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sidecar_image = sidecar_image
        self._variables = variables

    @cached_property
    def pod_manager(self) -> StepPodManager:
        """The object with which the provider follows the pod."""
        return StepPodManager(kube_client=self.client, callbacks=self.callbacks)

    def build_pod_request_obj(self, context: Any = None, *, dry_run: bool = False) -> V1Pod:
        """The provider's pod, with the runner's image and resource limits (for a quota) on the XCom sidecar."""
        pod = super().build_pod_request_obj(context, dry_run=dry_run)
        for container in pod.spec.containers:
            if container.name == PodDefaults.SIDECAR_CONTAINER_NAME:
                container.image = self.sidecar_image
                container.resources = _SIDECAR_RESOURCES
        if self._variables:
            refer_to_secret(pod, self.base_container_name)
        return pod

    def extract_xcom(self, pod: V1Pod, *, ignore_kill_failure: bool = True) -> None:
        """Keep the result and return None: the provider would push the result as XCom, also of a failed step."""
        answer = super().extract_xcom(pod, ignore_kill_failure=ignore_kill_failure)
        self.answer = json.dumps(answer).encode() if answer is not None else None

    def get_or_create_pod(self, pod_request_obj: V1Pod, context: Any) -> V1Pod:
        """Create the pod as the provider does; raise if `kill` came meanwhile and found no pod to delete."""
        # Assigned before the check: a `kill` from now on finds the pod, and an earlier `kill` is seen by the check.
        self.pod = super().get_or_create_pod(pod_request_obj, context)
        if self._killed:
            raise _stopped(self.task_id)
        if self._variables:
            try:
                # Read, as the provider gives back its request, which has no uid.
                create_secret(self.client, self.pod_manager.read_pod(self.pod), self._variables)
            except BaseException:
                self.delete()  # its container would wait for the Secret until the pod's deadline
                raise
        return self.pod

    def cleanup(self, *args: Any, **kwargs: Any) -> None:
        """Read the pod's final state, which has the reason of a failure, before the provider deletes the pod."""
        try:
            self.look()
        finally:
            super().cleanup(*args, **kwargs)

    def look(self) -> None:
        """Read the pod and set `seen`; if that fails, set `unread`."""
        pod = self.pod or self.pod_request_obj
        if pod is None or self._killed:
            return
        try:
            self.seen, self.unread = self.pod_manager.read_pod(pod), None
        except _API_ERRORS as error:
            self.seen, self.unread = None, error

    def delete(self) -> None:
        """Delete the pod if it was created before the provider's operator had it; else do nothing."""
        if (pod := self.pod or self.pod_request_obj) is None:
            return
        try:
            self.pod_manager.delete_pod(pod)
        except _API_ERRORS as error:
            self.log.warning("pod %s may be left: %s", pod.metadata.name, error)

    def last_warning(self) -> str | None:
        """The last warning event of the pod; None without a warning, or if events cannot be read."""
        try:
            # By uid, as events outlive their pod.
            events = self.pod_manager.read_pod_events(self.seen).items
        except _API_ERRORS:
            return None
        warnings = [event for event in events if event.type == "Warning"]
        # The scheduler's events have no last time, those of the node's agent no event time.
        warnings.sort(key=lambda event: event.last_timestamp or event.event_time or event.metadata.creation_timestamp)
        return f"{warnings[-1].reason}: {warnings[-1].message}" if warnings else None


class PodStep:
    """A pod; see `RunningStep`. If the runner is deferrable, `wait` raises Airflow's TaskDeferred."""

    def __init__(
        self,
        runner: PodTemplate,
        spec: StepSpec,
        context: Mapping[str, Any] | None,
        log: Log,
        event: Mapping[str, Any] | None,
        *,
        secrets: Mapping[str, str],
    ) -> None:
        self._runner = runner
        self._secrets = secrets
        self._spec = spec
        # The provider's operator expects Airflow's own type of context.
        self._context: Any = context or _outside_airflow(spec)
        self._log = log
        self._event = event
        self._operator = self._make(runner)
        self._killed = False
        self.result: StepResult | None = None

    def wait(self) -> StepResult:
        """Follow the pod to its end; see `RunningStep.wait`."""
        fallen = False
        try:
            self._run()
        except TaskDeferred:
            if not self._killed:
                raise
        except (Exception, AirflowTaskTimeout) as error:
            if (timeout := _first(AirflowTaskTimeout, error)) is not None:
                self._operator.delete()
                raise timeout from None
            if (refused := _first(SecretRefusedError, error)) is not None and not self._killed:
                raise refused from None
            fallen = self._falls_back()
            if not fallen and not self._killed:
                self.result = peek(self._operator.answer)
                raise self._failure(error) from error
        if self._killed:
            # `kill` may have come before the pod was created, and the provider does not delete a killed pod.
            self._operator.delete()
            raise _stopped(self._spec.step_id)
        if fallen:
            return self.wait()
        self.result = peek(self._operator.answer)
        return judge(self._operator.answer, self._spec, 0)

    def kill(self) -> None:
        """Delete the pod, with a grace period."""
        self._killed = True
        self._operator.on_kill()

    def _run(self) -> None:
        # Not `execute`, as Airflow warns when an operator calls the `execute` of another operator.
        if self._killed:
            return
        if self._event is not None:
            self._operator.trigger_reentry(self._context, dict(self._event))
        elif self._runner.deferrable:
            self._operator.execute_async(self._context)
        else:
            self._operator.execute_sync(self._context)

    def _make(self, runner: PodTemplate) -> StepPodOperator:
        template = runner.pod(self._spec)
        task = self._context.get("task")
        return StepPodOperator(
            task_id=self._spec.step_id,
            name=StepPodOperator._set_name(f"tfmot-ops-{self._spec.step_id}"[:200]),  # noqa: SLF001 - execute does
            sidecar_image=runner.sidecar_image or template["spec"]["containers"][0]["image"],
            variables=self._secrets,
            pod_template_dict=template,
            # Everything else is in the pod template; the operator would overwrite or needs these arguments itself.
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
            # With deferral, the trigger enforces the time-out.
            execution_timeout=task.execution_timeout if task is not None else None,
        )

    def _falls_back(self) -> bool:
        """Replace a GPU pod that no node can take by a pod for the CPU; False if there is nothing to replace."""
        reason, pod = self._unschedulable(), self._operator.seen
        # Checked on the pod itself: after a deferral, or in a retry, it may be the CPU pod already.
        if self._killed or reason is None or self._runner.fallback != Device.CPU or not _asks_for_gpu(pod):
            return False
        self._log(f"no node takes the GPU pod ({reason}): the runner falls back to the CPU")
        self._operator, self._event = self._make(self._runner.on_cpu()), None
        return True

    def _unschedulable(self) -> str | None:
        """The scheduler's reason if no node can take the pod; else None."""
        pod = self._operator.seen
        for condition in (pod.status.conditions or ()) if pod is not None else ():
            if condition.type == "PodScheduled" and condition.status != "True":
                return str(condition.message)
        return None

    def _failure(self, error: BaseException) -> TfmotOpsError:
        """The exception to raise for a failed pod."""
        pod, step = self._operator.seen, self._spec.step_id
        if pod is None:
            return self._without_pod(error)
        if (reason := self._unschedulable()) is not None:
            device, way_out = ("GPU", "; or set its `fallback`") if _asks_for_gpu(pod) else ("CPU", "")
            return StepFailedError(
                f"no node takes the {device} pod of step {step}",
                required=f"a node with free resources for the pod within {self._runner.schedule_timeout_s} s",
                received=reason,
                remedy=f"add a node, or relax the runner's resources and node selectors{way_out}",
            )
        if pod.status.reason:  # DeadlineExceeded, Evicted, NodeLost, Preempting
            return self._cut_short(pod.status.reason, pod.status.message)
        for state in _states(pod):
            if state.terminated is not None and state.terminated.exit_code != 0:
                return self._ended(state.terminated)
            if state.waiting is not None:
                return self._not_started(state.waiting)
        return StepFailedError(
            f"the pod of step {step} could not be followed to its end",
            required="a cluster that answers about the pod until its end",
            # The trigger's message is more specific than the exception raised after it, such as a time-out.
            received=str((self._event or {}).get("message") or _message([*_chain(error)][-1])),
            remedy="retry; if it happens again, check the kubelet of the node and the API server",
        )

    def _cut_short(self, reason: str, message: str | None) -> TfmotOpsError:
        over = ", as it ran longer than deadline_s" if reason == "DeadlineExceeded" else ""
        return self._advised(
            f"was ended: {reason}{over}", pod_advice.BY_REASON.get(reason, pod_advice.NODE), message or reason
        )

    def _not_started(self, waiting: Any) -> TfmotOpsError:
        received = waiting.message or self._operator.last_warning() or f"the state {waiting.reason}, and no warning"
        return self._advised(
            f"did not start: {waiting.reason}", pod_advice.BY_REASON.get(waiting.reason, pod_advice.SLOW), received
        )

    def _advised(self, end: str, advice: pod_advice.Advice, received: str) -> TfmotOpsError:
        required = advice.required.format(runner=self._runner)
        summary = f"the pod of step {self._spec.step_id} {end}"
        return StepFailedError(summary, required=required, received=received, remedy=advice.remedy)

    def _ended(self, terminated: Any) -> TfmotOpsError:
        if _overdue(self._operator.seen, terminated):
            return self._cut_short("DeadlineExceeded", f"exit code {terminated.exit_code} at the deadline")
        if terminated.reason == "OOMKilled":
            return StepFailedError(
                f"step {self._spec.step_id} ran out of memory and was killed (OOMKilled)",
                required="a step that needs at most the memory limit in the runner's `resources`",
                received=f"exit code {terminated.exit_code}",
                remedy="raise the limit, or reduce the step's batch_size",
            )
        try:
            judge(self._operator.answer, self._spec, terminated.exit_code, (terminated.message or "").splitlines())
        except TfmotOpsError as failure:
            return failure
        return StepFailedError(f"the pod of step {self._spec.step_id} failed", received=str(terminated.reason))

    def _without_pod(self, error: BaseException) -> TfmotOpsError:
        name = self._event["name"] if self._event else self._operator.pod and self._operator.pod.metadata.name
        if name is None:
            return StepFailedError(
                f"the pod of step {self._spec.step_id} could not be created",
                required="a cluster that answers and accepts the pod",
                received=f"{type(error).__name__}: {error}",
                remedy="check the connection, the service account's role, the quota, and the runner's arguments",
            )
        cause = self._operator.unread or _first(ApiException, error)
        if cause is not None and getattr(cause, "status", None) != _NOT_FOUND:
            return StepFailedError(
                f"the pod of step {self._spec.step_id} could not be read",
                required="a cluster that answers about the pod until its end",
                received=f"pod {name}: {_message(cause)}",
                remedy="retry; if it happens again, check the API server, and whether Airflow's role may get pods",
            )
        return StepFailedError(
            f"the pod of step {self._spec.step_id} is gone",
            required="a pod that exists until its result was read",
            received=f"no pod {name}; somebody else deleted it",
            remedy="retry; check for a removed node, or for jobs that delete pods in the namespace",
        )


def _outside_airflow(spec: StepSpec) -> dict[str, Any]:
    """A replacement for a task's context outside Airflow, from which the provider derives the pod's name and labels."""
    task = SimpleNamespace(dag_id="none", task_id=spec.step_id, map_index=-1, try_number=1, xcom_push=lambda **_: None)
    return {"ti": task, "run_id": uuid4().hex, "dag": None}


def _states(pod: V1Pod) -> Iterator[Any]:
    """States of the pod's containers; the step's container comes first."""
    found = sorted(pod.status.container_statuses or (), key=lambda status: status.name != "base")
    return (status.state for status in found)


def _asks_for_gpu(pod: V1Pod) -> bool:
    return any(GPU_RESOURCE in ((c.resources and c.resources.limits) or ()) for c in pod.spec.containers)


def _overdue(pod: V1Pod, terminated: Any) -> bool:
    """Whether the deadline ended the container: the kubelet reports it only once all containers have ended."""
    limit, began, ended = pod.spec.active_deadline_seconds, pod.status.start_time, terminated.finished_at
    return None not in (limit, began, ended) and (ended - began).total_seconds() >= limit


def _stopped(step_id: str) -> TfmotOpsError:
    return TfmotOpsError(f"step {step_id} was stopped, as its task was")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, then its causes, the original last: the provider's cleanup raises further exceptions."""
    while error is not None:
        yield error
        error = error.__context__


def _first(kind: type[BaseException] | tuple[type[BaseException], ...], error: BaseException) -> BaseException | None:
    return next((found for found in _chain(error) if isinstance(found, kind)), None)


def _message(error: BaseException) -> str:
    return f"{type(error).__name__}: {getattr(error, 'body', None) or error}"
