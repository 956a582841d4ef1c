"""Tags a run with the process that works on it, so that runs of killed processes can be found and ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfmot_ops.system import processes

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Run

#: Tag with the process that works on a run; if this process is dead, the run is ended.
OWNER = "tfmot_ops.owner"
_MOST_EXPERIMENTS = 1000
# Stores whose runs this process has checked already.
_looked_through: set[str] = set()


def owner_tag() -> dict[str, str]:
    """The tag that says that this process works on a run."""
    return {OWNER: str(processes.current())}


def is_left_behind(run: Run) -> bool:
    """Whether a run is RUNNING although its process is known to be dead."""
    owner = processes.Owner.parse(run.data.tags.get(OWNER, ""))
    return run.info.status == "RUNNING" and owner is not None and owner.is_dead()


def end_runs_left_behind(client: mlflow.MlflowClient) -> None:
    """End, as KILLED, the runs that dead processes of this machine left RUNNING; once in each process and store.

    Raises:
        MlflowException: the store cannot be read or written.
    """
    if client.tracking_uri in _looked_through:
        return
    _looked_through.add(client.tracking_uri)
    experiments = [each.experiment_id for each in client.search_experiments(max_results=_MOST_EXPERIMENTS)]
    host = processes.current().host.replace("'", "_")
    running = f"attributes.status = 'RUNNING' and tags.`{OWNER}` LIKE '{host}|%'"
    for run in client.search_runs(experiments, running):
        # Read again, as a retry may have continued the run in the meantime.
        if is_left_behind(run) and is_left_behind(client.get_run(run.info.run_id)):
            client.set_terminated(run.info.run_id, "KILLED")
