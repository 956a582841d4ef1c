"""Steps as containers of a Docker engine, through Airflow's DockerOperator."""

from __future__ import annotations

import functools
import inspect
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfmot_ops.contract import Device, StepResult, StepSpec
from tfmot_ops.errors import SpecError, StepFailedError, TfmotOpsError
from tfmot_ops.runners import image as images
from tfmot_ops.runners.base import Log, judge, peek

if TYPE_CHECKING:
    from airflow.providers.docker.operators.docker import DockerOperator

#: Labels of our containers: the step for people, the task instance for its next attempt.
STEP_LABEL, TASK_LABEL = "tfmot-ops.step", "tfmot-ops.task"
_QUOTED_LINES = 15
#: Exit code of coreutils' `timeout` when the time is over.
_TIMED_OUT = 124


@dataclass(frozen=True)
class DockerRunner:
    """Runs each step in a container that may write nothing but its scratch space.

    Attributes:
        image: image of the target `cpu`.
        gpu_image: image of the target `gpu`.
        device: what steps compute on; None is what each spec says. `gpu` takes `gpu_image` and asks for every GPU.
        memory: limit of memory and swap together, as Docker writes it.
        cpus: limit of processor time, in processors.
        network: Docker's network mode, or the name of a network.
        env: variables of the container. Not in `repr`, but not for secrets either: Airflow shows a DAG's arguments.
        env_conn_id: Airflow connection whose extra, an object of strings, are more variables; for secrets.
        mounts: further mounts, as the arguments of `docker.types.Mount`; of data sets, for one.
        tmp_size: size of the scratch space, which is memory.
        deadline_s: seconds after which a step is ended by itself, in case nobody is left to do it.
        force_pull: pull the image before each step.
        docker_url: the engine; None is DOCKER_HOST, then the local socket.
        docker_conn_id: Airflow connection of the image registry.
    """

    image: str = images.IMAGE
    gpu_image: str = images.GPU_IMAGE
    device: Device | None = None
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

    def start(self, spec: StepSpec, context: Mapping[str, Any] | None, log: Log) -> DockerStep:
        """Prepare the container; the provider's operator makes, starts and follows it in one call, which is `wait`."""
        try:
            operator = self._operator(spec, context)
        except ImportError as error:
            raise images.missing_provider("docker") from error
        return DockerStep(operator, spec, context, log)

    def _operator(self, spec: StepSpec, context: Mapping[str, Any] | None) -> DockerOperator:
        from airflow.providers.docker.operators.docker import DockerOperator
        from docker.types import DeviceRequest

        device = self.device or spec.device
        gpu = device is Device.GPU
        task = images.task_key(context)
        operator = DockerOperator(
            task_id=spec.step_id,
            image=self.gpu_image if gpu else self.image,
            entrypoint=["tini", "-g", "--", "timeout", "--kill-after=10", str(self.deadline_s), "tfmot-ops"],
            command=list(images.ARGUMENTS),
            user=f"{images.UID}:{images.UID}",
            environment=images.environment(spec, device, self.env),
            private_environment=self._secrets(),
            mem_limit=self.memory,
            cpus=self.cpus,
            network_mode=self.network,
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if gpu else None,
            # A volume without a name, for the result alone: it is still there when the container has ended, which a
            # tmpfs is not, and it goes with the container.
            mounts=[{"target": images.RESULT_FOLDER, "source": None, "type": "volume"}, *map(dict, self.mounts)],
            mount_tmp_dir=False,
            # By us, as the provider leaves the volume behind.
            auto_remove="never",
            labels={STEP_LABEL: spec.step_id, **({TASK_LABEL: task} if task else {})},
            force_pull=self.force_pull,
            docker_url=self.docker_url,
            docker_conn_id=self.docker_conn_id,
            do_xcom_push=False,
        )
        client = operator.cli
        # The operator has no arguments for these.
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

    def _secrets(self) -> dict[str, str]:
        if self.env_conn_id is None:
            return {}
        from airflow.sdk import Connection

        extra = Connection.get(self.env_conn_id).extra_dejson
        if not all(isinstance(value, str) for value in extra.values()):
            raise SpecError(
                f"connection {self.env_conn_id}: its extra becomes variables",
                required="a JSON object of strings",
                received=", ".join(f"{name}: {type(value).__name__}" for name, value in extra.items()),
                remedy="write each value as a string",
            )
        return {str(name): value for name, value in extra.items()}


class DockerStep:
    """A container; see `RunningStep`."""

    def __init__(self, operator: DockerOperator, spec: StepSpec, context: Mapping[str, Any] | None, log: Log) -> None:
        self._operator = operator
        self._spec = spec
        self._context = context
        self._log = log
        self._killed = False
        self.result: StepResult | None = None

    def wait(self) -> StepResult:
        """Run the container to its end and remove it, whatever happens; see `RunningStep.wait`."""
        from airflow.providers.docker.exceptions import DockerContainerFailedException
        from docker.errors import APIError

        self._remove_predecessors()
        lines: Sequence[Any] = ()
        try:
            try:
                # Unwrapped: Airflow's guard takes an operator inside an operator for a mistake, and warns.
                inspect.unwrap(type(self._operator).execute)(self._operator, self._context or {})
            except DockerContainerFailedException as error:
                lines = error.logs or ()
            except APIError as error:
                if self._operator.container is None:
                    raise self._not_started(error) from error
            return self._answer([str(line) for line in lines[-_QUOTED_LINES:]])
        finally:
            self._remove(self._container_id)
            self._operator.cli.close()

    def kill(self) -> None:
        """SIGTERM, a grace period, SIGKILL, and the container is gone."""
        from docker.errors import APIError

        self._killed = True
        if (container := self._container_id) is None:
            return
        try:
            self._operator.cli.stop(container, timeout=images.GRACE_S)
        except APIError as error:  # it has ended already, or somebody else has removed it
            self._log(f"container {container[:12]}: {error.explanation}")
        self._remove(container)

    @property
    def _container_id(self) -> str | None:
        container = self._operator.container
        return str(container["Id"]) if container else None

    def _answer(self, last_lines: list[str]) -> StepResult:
        from docker.errors import NotFound

        client, container = self._operator.cli, str(self._container_id)
        try:
            state = client.inspect_container(container)["State"]
            answer = self._result_file(container)
        except NotFound as error:
            if self._killed:
                raise TfmotOpsError(f"step {self._spec.step_id} was stopped, as its task was") from error
            raise StepFailedError(
                f"the container of step {self._spec.step_id} is gone",
                required="a container that is there until its result was read",
                received=f"no container {container[:12]}; somebody else removed it",
                remedy="retry; look for what cleans up on the engine's host",
            ) from error
        self.result = peek(answer)
        if state.get("OOMKilled"):
            raise StepFailedError(
                f"step {self._spec.step_id} was ended for lack of memory (OOMKilled)",
                required="a step that fits the runner's `memory`",
                received=f"exit code {state['ExitCode']}",
                remedy="give the runner more memory, or the step a smaller batch_size",
            )
        if state["ExitCode"] == _TIMED_OUT:
            last_lines = [*last_lines, "exit code 124: the runner's deadline_s is over"]
        return judge(answer, self._spec, state["ExitCode"], last_lines)

    def _result_file(self, container: str) -> bytes | None:
        from docker.errors import NotFound

        client = self._operator.cli
        try:
            stream, _ = client.get_archive(container, images.RESULT_FILE)
        except NotFound:
            client.inspect_container(container)  # a missing container is another matter than a missing file
            return None
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            file = archive.extractfile(archive.getmembers()[0])
            return file.read() if file is not None else None

    def _not_started(self, error: Exception) -> StepFailedError:
        return StepFailedError(
            f"the container of step {self._spec.step_id} could not be made",
            required=f"an engine that has or can pull {self._operator.image}, and takes the runner's arguments",
            received=str(error),
            remedy="build or push the image (docker/Dockerfile), or correct the runner's `image`",
        )

    def _remove_predecessors(self) -> None:
        """End what an earlier attempt left: its worker may have been killed without a chance to tidy up."""
        if (task := images.task_key(self._context)) is None:
            return
        found = self._operator.cli.containers(all=True, filters={"label": f"{TASK_LABEL}={task}"})
        for container in found:
            self._log(f"removing container {container['Id'][:12]} of an earlier attempt")
            self._remove(container["Id"])

    def _remove(self, container: str | None) -> None:
        from docker.errors import APIError

        if container is None:
            return
        try:
            self._operator.cli.remove_container(container, force=True, v=True)
        except APIError as error:  # gone, or going: `kill` in a signal handler may have been here first
            self._log(f"container {container[:12]}: {error.explanation}")
