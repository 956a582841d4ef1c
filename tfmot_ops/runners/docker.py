"""Runs each step in a Docker container, through the DockerOperator of Airflow's Docker provider."""

from __future__ import annotations

import functools
import inspect
import io
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tfmot_ops.contract import Device, StepResult, StepSpec
from tfmot_ops.errors import StepFailedError, TfmotOpsError
from tfmot_ops.runners import docker_engine
from tfmot_ops.runners import image as images
from tfmot_ops.runners.base import Log, judge, peek

if TYPE_CHECKING:
    from airflow.providers.docker.operators.docker import DockerOperator
    from docker.errors import APIError

#: Labels of the containers: the step's id for people, and the task instance, by which a retry finds its predecessor.
STEP_LABEL, TASK_LABEL = "tfmot-ops.step", "tfmot-ops.task"
_QUOTED_LINES = 15
#: Exit codes of coreutils' `timeout` after the deadline: the step ended on SIGTERM, and the step needed SIGKILL.
_TIMED_OUT, _KILLED = 124, 137
#: Seconds between attempts to inspect a container when the engine does not answer: a restart of the engine takes a few
#: seconds, and podman returns an error, instead of "not found", while another client removes the container.
_PATIENCE_S = (1, 2, 4, 8)


@dataclass(frozen=True)
class DockerRunner:
    """Runs each step in a container with a read-only file system, except for its scratch space.

    Attributes:
        image: image for steps on the CPU (build target `cpu`).
        gpu_image: image for steps on a GPU (build target `gpu`).
        device: device of all steps; None takes the device in each spec. `gpu` uses `gpu_image` and requests all GPUs.
        fallback: `cpu` runs a step on the CPU if the engine cannot start its GPU container; None fails the step with
            the engine's reason. An engine that ignores the request for GPUs starts the container without a GPU, which
            is logged.
        memory: limit of memory plus swap, in Docker's notation (`4g`).
        cpus: limit of processor time, in number of processors.
        network: Docker's network mode, or the name of a network.
        env: environment variables of the container. Not for secrets: Airflow shows a DAG's arguments.
        env_conn_id: Airflow connection whose extra (a JSON object of strings) holds more environment variables; for
            secrets.
        mounts: further mounts, as the arguments of `docker.types.Mount`; for example data sets.
        tmp_size: size of the scratch space, which is a tmpfs in memory.
        deadline_s: seconds after which the container ends the step, in case the Airflow task is gone.
        force_pull: pull the image before each step.
        docker_url: URL of the engine; None takes DOCKER_HOST, then the local socket.
        docker_conn_id: Airflow connection of the image registry.
    """

    image: str = images.IMAGE
    gpu_image: str = images.GPU_IMAGE
    device: Device | None = None
    fallback: Device | None = None
    memory: str = "4g"
    cpus: float = 2.0
    network: str = "bridge"
    env: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    env_conn_id: str | None = None
    mounts: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    tmp_size: str = "2g"
    deadline_s: int = images.DEADLINE_S
    force_pull: bool = False
    docker_url: str | None = None
    docker_conn_id: str | None = None

    def start(
        self, spec: StepSpec, context: Mapping[str, Any] | None, log: Log, *, secrets: Mapping[str, str] | None = None
    ) -> DockerStep:
        """Prepare the container; `wait` creates, starts and follows it with one call of the provider's operator."""
        try:
            return DockerStep(self, spec, context, log, secrets=secrets or {})
        except ImportError as error:
            raise images.missing_provider("docker") from error

    def on_cpu(self) -> DockerRunner:
        """A copy of this runner for steps on the CPU."""
        return replace(self, device=Device.CPU, fallback=None)

    def with_memory(self, gib: float) -> DockerRunner:
        """A copy of this runner with a memory limit of at least `gib` GiB."""
        from docker.utils import parse_bytes

        return self if parse_bytes(self.memory) >= gib * 2**30 else replace(self, memory=f"{round(gib * 2**10)}m")

    def wants_gpu(self, spec: StepSpec) -> bool:
        """Whether this runner requests a GPU for this step."""
        return (self.device or spec.device) is Device.GPU

    def operator(self, spec: StepSpec, context: Mapping[str, Any] | None, secrets: Mapping[str, str]) -> DockerOperator:
        """The provider's operator for a step, with a client that is connected to the engine.

        Args:
            spec: the step.
            context: Airflow's task context; None outside Airflow.
            secrets: further variables of the container; those of `env_conn_id` override them.

        Raises:
            StepFailedError: no engine answers.
        """
        from airflow.providers.docker.operators.docker import DockerOperator
        from docker.types import DeviceRequest

        gpu = self.wants_gpu(spec)
        task = images.task_key(context)
        own = docker_engine.variables_of(self.env_conn_id) if self.env_conn_id else {}
        operator = DockerOperator(
            task_id=spec.step_id,
            image=self.gpu_image if gpu else self.image,
            entrypoint=["tini", "-g", "--", "timeout", "--kill-after=10", str(self.deadline_s), "tfmot-ops"],
            command=list(images.ARGUMENTS),
            user=f"{images.UID}:{images.UID}",
            environment=images.environment(spec, Device.GPU if gpu else Device.CPU, self.env),
            private_environment={**secrets, **own},
            mem_limit=self.memory,
            cpus=self.cpus,
            network_mode=self.network,
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if gpu else None,
            # An anonymous volume for the result file: unlike a tmpfs it can be read after the container has ended, and
            # it is deleted with the container.
            mounts=[{"target": images.RESULT_FOLDER, "source": None, "type": "volume"}, *map(dict, self.mounts)],
            mount_tmp_dir=False,
            # `_tidy` removes the container, as the provider would leave the volume behind.
            auto_remove="never",
            labels={STEP_LABEL: spec.step_id, **({TASK_LABEL: task} if task else {})},
            force_pull=self.force_pull,
            docker_url=self.docker_url,
            docker_conn_id=self.docker_conn_id,
            do_xcom_push=False,
        )
        client = docker_engine.connect(operator)
        # DockerOperator has no arguments for these settings.
        client.create_host_config = functools.partial(
            client.create_host_config,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            tmpfs={"/tmp": f"rw,nosuid,nodev,mode=1777,size={self.tmp_size}"},  # noqa: S108 - of the container
            nano_cpus=round(self.cpus * 1e9),
            memswap_limit=self.memory,
        )
        return operator


class DockerStep:
    """A container; see `RunningStep`."""

    def __init__(
        self,
        runner: DockerRunner,
        spec: StepSpec,
        context: Mapping[str, Any] | None,
        log: Log,
        *,
        secrets: Mapping[str, str],
    ) -> None:
        self._runner = runner
        self._spec = spec
        self._context = context
        self._log = log
        self._secrets = secrets
        self._killed = False
        self._lines: list[str] = []
        self._operator = self._make(runner)
        self.result: StepResult | None = None

    def wait(self) -> StepResult:
        """Run the container to its end and remove it, whatever happens; see `RunningStep.wait`."""
        try:
            self._remove_predecessors()
            return self._attempt()
        except OSError as error:  # from the engine or the connection: APIError and all errors of requests are OSErrors
            failure = self._stopped() if self._killed else self._lost(error)
            self.kill()
            raise failure from error
        except BaseException:  # for example Airflow's time-out
            self.kill()
            raise
        finally:
            self._tidy()

    def kill(self) -> None:
        """Send SIGTERM, after a grace period SIGKILL, then remove the container."""
        self._killed = True
        if (container := self._container_id) is not None:
            self._order(self._operator.cli.stop, container, timeout=images.GRACE_S)
            self._remove(container)

    @property
    def _container_id(self) -> str | None:
        container = self._operator.container
        return str(container["Id"]) if container else None

    def _make(self, runner: DockerRunner) -> DockerOperator:
        operator = runner.operator(self._spec, self._context, self._secrets)
        operator.cli.create_container = functools.partial(self._create, operator, operator.cli.create_container)
        return operator

    def _create(self, operator: DockerOperator, create: Callable[..., dict[str, Any]], **arguments: Any) -> Any:
        """Create the container for the provider's operator; raise if `kill` was called meanwhile, or it would start."""
        # Assigned before `_killed` is read: a later `kill` finds the container, an earlier one has set `_killed`.
        operator.container = container = create(**arguments)
        if self._killed:
            raise self._stopped()
        if operator.device_requests:
            given = operator.cli.inspect_container(container["Id"])["HostConfig"]
            if not given.get("DeviceRequests") and not given.get("Devices"):
                self._log(
                    "Docker ignored the request for a GPU; the step fails unless TensorFlow sees one all the same"
                )
        return container

    def _attempt(self) -> StepResult:
        error = self._follow()
        state = self._state()
        if self._killed:
            raise self._stopped() from error
        if self._container_id is None or (state is not None and state["Status"] == "created"):
            return self._without_start(error)
        if state is None:
            raise self._gone() from error
        return self._answer(state, error)

    def _follow(self) -> OSError | None:
        """Run the container and log its output until it ends; return the engine's error, or None."""
        from airflow.providers.docker.exceptions import DockerContainerFailedException

        try:
            # Unwrapped, as Airflow warns when an operator calls the `execute` of another operator.
            inspect.unwrap(type(self._operator).execute)(self._operator, self._context or {})
        except DockerContainerFailedException as failure:
            self._lines = [str(line) for line in (failure.logs or ())[-_QUOTED_LINES:]]
        except OSError as error:
            return error
        return None

    def _state(self) -> dict[str, Any] | None:
        """The container's state, asked again while the engine restarts; None if there is no container."""
        from docker.errors import NotFound, NullResource

        for pause in (*_PATIENCE_S, None):
            try:
                return dict(self._operator.cli.inspect_container(self._container_id)["State"])
            except (NotFound, NullResource):  # NullResource: no container was created
                return None
            except OSError:
                if pause is None:
                    raise
                time.sleep(pause)
        return None

    def _without_start(self, error: OSError | None) -> StepResult:
        """Handle a container that never ran: fall back to the CPU if the runner allows it, else raise."""
        from docker.errors import APIError

        if not isinstance(error, APIError):
            raise error or self._gone()
        # An engine looks for a GPU when it starts a container, not when it creates it.
        refused = self._container_id is not None and self._runner.wants_gpu(self._spec)
        if not refused or self._runner.fallback is not Device.CPU:
            raise self._not_started(error) from error
        reason = error.explanation or error
        self._log(f"the engine does not start the GPU container ({reason}): the runner falls back to the CPU")
        self._tidy()
        self._runner = self._runner.on_cpu()
        self._operator = self._make(self._runner)
        return self._attempt()

    def _answer(self, state: Mapping[str, Any], error: OSError | None) -> StepResult:
        from docker.errors import NotFound

        try:
            answer = self._result_file(str(self._container_id))
        except NotFound as missing:
            raise (self._stopped() if self._killed else self._gone()) from missing
        self.result = peek(answer)
        if error is not None and (answer is None or state["Running"]):
            raise self._lost(error, state) from error
        if state.get("OOMKilled"):
            raise StepFailedError(
                f"step {self._spec.step_id} ran out of memory and was killed (OOMKilled)",
                required=f"a step that needs at most the runner's `memory`, {self._runner.memory}",
                received=f"exit code {state['ExitCode']}",
                remedy="raise the runner's `memory`, or reduce the step's batch_size",
            )
        if self._is_late(state):
            raise StepFailedError(
                f"step {self._spec.step_id} was killed, as it ran longer than the runner's deadline_s",
                required=f"a step that ends within {self._runner.deadline_s} s",
                received="\n    ".join([f"exit code {state['ExitCode']}; its last lines:", *self._lines]),
                remedy="raise deadline_s, or use fewer epochs or samples; a retry continues from its checkpoint",
            )
        return judge(answer, self._spec, state["ExitCode"], self._lines)

    def _is_late(self, state: Mapping[str, Any]) -> bool:
        if state["ExitCode"] != _KILLED:
            return bool(state["ExitCode"] == _TIMED_OUT)
        # SIGKILL came from the deadline if the step ignored SIGTERM, or from somebody else.
        began, ended = (datetime.fromisoformat(state[moment]) for moment in ("StartedAt", "FinishedAt"))
        return (ended - began).total_seconds() >= self._runner.deadline_s

    def _result_file(self, container: str) -> bytes | None:
        from docker.errors import NotFound

        client = self._operator.cli
        try:
            stream, _ = client.get_archive(container, images.RESULT_FILE)
        except NotFound:
            client.inspect_container(container)  # raises NotFound if the container is missing, not only the file
            return None
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            file = archive.extractfile(archive.getmembers()[0])
            return file.read() if file is not None else None

    def _stopped(self) -> TfmotOpsError:
        return TfmotOpsError(f"step {self._spec.step_id} was stopped, as its task was")

    def _gone(self) -> StepFailedError:
        return StepFailedError(
            f"the container of step {self._spec.step_id} is gone",
            required="a container that exists until its result was read",
            received=f"no container {str(self._container_id)[:12]}; somebody else removed it",
            remedy="retry; check the engine's host for jobs that remove containers",
        )

    def _not_started(self, error: APIError) -> StepFailedError:
        if self._container_id is None:
            return StepFailedError(
                f"the container of step {self._spec.step_id} could not be created",
                required=f"an engine that has or can pull {self._operator.image}, and accepts the runner's arguments",
                received=str(error),
                remedy="build or push the image (docker/Dockerfile), or correct the runner's `image`",
            )
        gpu = "; for a GPU, its driver and the container toolkit" if self._runner.wants_gpu(self._spec) else ""
        return StepFailedError(
            f"the container of step {self._spec.step_id} could not be started",
            required=f"an image of docker/Dockerfile, and an engine with the runner's network and mounts{gpu}",
            received=str(error),
            remedy="correct the runner's arguments or the engine" + (", or set the runner's `fallback`" if gpu else ""),
        )

    def _lost(self, error: OSError, state: Mapping[str, Any] | None = None) -> StepFailedError:
        then = f"; then the container was {state['Status']}, exit code {state['ExitCode']}" if state else ""
        return StepFailedError(
            f"the Docker engine of step {self._spec.step_id} stopped answering",
            required="an engine that answers until the step's result was read",
            received=f"{type(error).__name__}: {error}{then}",
            remedy="retry (a retry removes this attempt's container), and find out why the engine failed or restarted",
        )

    def _remove_predecessors(self) -> None:
        """Remove the containers of earlier attempts, whose workers may have been killed before they could do so."""
        if (task := images.task_key(self._context)) is None:
            return
        found = self._operator.cli.containers(all=True, filters={"label": f"{TASK_LABEL}={task}"})
        for container in found:
            self._log(f"removing container {container['Id'][:12]} of an earlier attempt")
            self._remove(container["Id"])

    def _tidy(self) -> None:
        if (container := self._container_id) is not None:
            self._remove(container)
        self._operator.cli.close()

    def _remove(self, container: str) -> None:
        self._order(self._operator.cli.remove_container, container, force=True, v=True)

    def _order(self, call: Callable[..., Any], container: str, **arguments: Any) -> None:
        """Call the engine's API on a container; log an error, as the container or the engine may be gone."""
        from docker.errors import NotFound

        try:
            call(container, **arguments)
        except NotFound:
            pass
        except OSError as error:
            self._log(f"container {container[:12]}: {getattr(error, 'explanation', None) or error}")
