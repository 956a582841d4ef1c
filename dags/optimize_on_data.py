"""One DAG for each data set that the deployment lists: a new version of the data starts `optimize_model`.

The variable TFMOT_OPS_OPTIMIZE_ON maps the URI of an Airflow asset to the parameters of `optimize_model`. Without it,
there is no such DAG.
"""

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Asset

from tfmot_ops.operators.assets import data_sets

for uri, (dag_id, parameters) in data_sets().items():
    with DAG(
        dag_id,
        description=f"starts optimize_model when {uri} has changed",
        doc_md=__doc__,
        schedule=[Asset(uri)],
        catchup=False,
        tags=["tfmot_ops"],
    ) as dag:
        TriggerDagRunOperator(task_id="optimize_model", trigger_dag_id="optimize_model", conf=parameters)
    globals()[dag_id] = dag
