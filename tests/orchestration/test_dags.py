"""The DAG folder: what parsing it costs, what is in it, and what its form refuses."""

import json

import pytest

pytestmark = pytest.mark.airflow

_PARSE = """
import json, sys, time
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
# Airflow's own import loads the provider, and so us: forgotten here, or the clock would start after the work.
for name in [name for name in sys.modules if name.split(".")[0] == "tfmot_ops"]:
    del sys.modules[name]
loaded = ["tfmot_ops.operators" in sys.modules]
began = time.process_time()
bag = DagBag(dag_folder=sys.argv[1], bundle_path=sys.argv[1])
seconds = time.process_time() - began
loaded.append("tfmot_ops.operators" in sys.modules)
heavy = [name for name in ("tensorflow", "tf_keras", "keras", "mlflow", "sklearn") if name in sys.modules]
from airflow.serialization.serialized_objects import DagSerialization
from airflow.providers_manager import ProvidersManager
dag = bag.dags["optimize_model"]
document = DagSerialization.to_dict(dag)
print("answer " + json.dumps({
    "seconds": seconds, "loaded": loaded, "heavy": heavy, "errors": bag.import_errors, "dags": sorted(bag.dags),
    "document": json.loads(json.dumps(document, default=str)),
    "params": {name: dag.params.get_param(name).schema for name in dag.params},
    "links": sorted(ProvidersManager().extra_links_class_names),
    "upstream": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
}))
"""


def parse(bench, run_python):
    output = run_python(["-c", _PARSE, str(bench.dags)], bench.environment())
    return json.loads(output.split("answer ", 1)[1])


@pytest.fixture(scope="module")
def parsed(bench, run_python):
    return parse(bench, run_python)


@pytest.mark.slow
def test_parsing_is_quick_and_loads_no_tensorflow(parsed):
    assert parsed["errors"] == {}
    assert parsed["heavy"] == []
    assert parsed["loaded"] == [False, True], "our modules have to load while the clock runs"
    assert parsed["seconds"] < 2


@pytest.mark.slow
def test_the_same_folder_gives_the_same_document(parsed, bench, run_python):
    # An address in it would make a new DAG version at each parse.
    again = parse(bench, run_python)["document"]
    assert again == parsed["document"]
    assert " at 0x" not in json.dumps(again)


@pytest.mark.slow
def test_the_chain(parsed):
    upstream = parsed["upstream"]
    assert upstream["train"] == ["open_run"]
    assert upstream["prune"] == ["open_run", "train"]
    assert upstream["fine_tune"] == ["open_run", "prune"]
    assert upstream["strip"] == ["fine_tune", "open_run"]
    assert upstream["quantize"] == ["open_run", "strip"]
    assert upstream["evaluate"] == ["open_run", "quantize", "strip"]
    assert upstream["register"] == ["evaluate", "open_run", "quantize"]
    assert upstream["approve"] == ["evaluate", "register"]
    assert upstream["promote"] == ["approve", "evaluate", "open_run", "quantize"]
    assert "promote" in upstream["close_run"]


def test_the_form_offers_enums_and_ranges(parsed):
    params = parsed["params"]
    assert "sparse50_wi8_ai8" in params["recipe"]["examples"]
    assert params["runner"]["enum"] == [None, "local", "docker", "kubernetes"]
    assert params["device"]["enum"] == ["cpu", "gpu"]
    assert (params["epochs"]["minimum"], params["epochs"]["maximum"]) == (0, 1000)
    assert params["epochs"]["type"] == ["null", "integer"], "empty: ten epochs, or none for a saved model"
    assert {"model", "dataset", "recipe", "epochs", "runner", "device"} <= set(params)


def test_airflow_knows_the_provider_and_its_link(parsed):
    assert "tfmot_ops.operators.links.MlflowRunLink" in parsed["links"]
