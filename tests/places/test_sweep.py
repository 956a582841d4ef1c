"""The DAGs of the compat matrix with a runner that is chosen in their form: shards in containers and in pods."""

import pytest
from planting import plant

from tfmot_ops.contract import Status
from tfmot_ops.tracking import earlier_sweeps

pytestmark = pytest.mark.timeout(2400)

EXPERIMENT = "tfmot_ops_sweep"
#: One of the light weight class, one of the medium.
NAMES = ["MobileNet", "RegNetY160"]
#: What the deployment of conftest.py lists as `next`.
NEXT_IMAGE = "localhost/tfmot-ops:next-cpu"
#: Under the next pins, MobileNet cannot be built.
LOST = """
import functools

@functools.wraps(module.MobileNet)
def refuse(*arguments, **keywords):
    raise RuntimeError("gone in the next version")

module.MobileNet = refuse
"""


@pytest.fixture
def next_image(engine, image, tmp_path):
    """An image that says it has the next tf-keras, and has lost MobileNet."""
    info = tmp_path / "next" / "tf_keras-99.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tf-keras\nVersion: 99.0\n", encoding="utf-8")
    plant(tmp_path / "next", "tf_keras.src.applications.mobilenet", LOST)
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nCOPY next /opt/tfmot-ops/code/\n", encoding="utf-8")
    engine.images.build(path=str(tmp_path), tag=NEXT_IMAGE, rm=True)


@pytest.fixture
def on(airflow):
    """A function that turns a DAG on and triggers it."""

    def start(dag, conf):
        airflow.call("PATCH", f"/{dag}", {"is_paused": False})
        return airflow.trigger(dag, conf)

    return start


def tasks(airflow, dag, run):
    """(task, its label where mapped, state), and the log of each task."""
    found = airflow.call("GET", f"/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
    folder = airflow.home / "airflow" / "logs" / f"dag_id={dag}" / f"run_id={run}"
    logs = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("attempt=*.log*"))]
    return {(each["task_id"], each["rendered_map_index"], each["state"]) for each in found}, "\n".join(logs)


@pytest.mark.parametrize("runner", ["docker", "kubernetes"])
def test_a_sweep_of_two_weight_classes(airflow, on, runner, containers, pods):
    asked = {"architectures": NAMES, "recipes": ["wi8_ai8"], "runner": runner, "force": True}
    run = on("compat_sweep", asked)
    state = airflow.end_of("compat_sweep", run, 1500)
    states, log = tasks(airflow, "compat_sweep", run)
    assert state == "success", log[-6000:]
    assert {task for task, label, _ in states if label} == {"light", "medium"}, states
    sweep = earlier_sweeps(airflow.mlflow_uri, EXPERIMENT)[0]
    cells = {cell.architecture: cell for cell in sweep.cells}
    assert set(cells) == set(NAMES)
    assert {cell.status for cell in cells.values()} == {Status.OK}
    assert not any(cell.cached for cell in cells.values())
    assert ("Starting docker container" in log) == (runner == "docker")
    assert (containers(), pods()) == ([], [])


@pytest.mark.usefixtures("next_image")
def test_a_forecast_by_another_image(airflow, on, containers):
    conf = {"architectures": ["MobileNet", "MobileNetV2"], "recipes": ["wi8_ai8"], "runner": "docker"}
    run = on("compat_forecast", {**conf, "next_image": "next"})
    state = airflow.end_of("compat_forecast", run, 1500)
    states, log = tasks(airflow, "compat_forecast", run)
    by_task = {task: state for task, _, state in states}
    outcome = (state, by_task["now"], by_task["then"], by_task["forecast"])
    assert outcome == ("failed", "success", "success", "failed"), log[-6000:]
    assert "tf-keras: 2.21.0 -> 99.0" in log
    assert "MobileNet/wi8_ai8    ok   build: unknown (RuntimeError)  breaks" in log
    assert "no-go: 1 of 2 cells get worse" in log
    assert containers() == []
