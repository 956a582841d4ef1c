"""An Airflow DAG that optimises a model, checks the file by rules, asks a person, and makes the file the champion.

Copy this file into Airflow's folder of DAGs. The person answers on Airflow's page of the task `approve`.
"""

from airflow.sdk import DAG

from tfmot_ops import operators as ops
from tfmot_ops.operators.approval import ApprovePromotionOperator

NAME = "digits"  # of the model in MLflow's registry
DATA, RECIPE = {"dataset": "digits"}, {"recipe": "wi8_ai8"}
GATES = {"accuracy": 0.95, "int8_mac_fraction": 1.0}  # metric -> lowest value with which the file is registered

with DAG("release_with_approval", schedule=None, tags=["example"], default_args={"retries": 1}) as dag:
    run = ops.OpenRunOperator(task_id="open_run", options={"name": "release of digits"})
    each = {"parent_run": run.output}

    train = ops.TrainOperator(task_id="train", options={"model": "resnet8", "epochs": 10, **DATA}, **each)
    quantize = ops.QuantizeOperator(task_id="quantize", inputs={"model": train.output}, options=RECIPE | DATA, **each)
    evaluate = ops.EvaluateOperator(
        task_id="evaluate", inputs={"tflite": quantize.output, "model": train.output}, options=RECIPE | DATA, **each
    )

    file = {"inputs": {"tflite": quantize.output}, "measured": evaluate.output, **each}
    register = ops.RegisterOperator(task_id="register", options={"name": NAME, "gates": GATES}, **file)
    approve = ApprovePromotionOperator(
        task_id="approve", model=NAME, registered=register.output, measured=evaluate.output
    )
    promote = ops.RegisterOperator(task_id="promote", options={"name": NAME, "gates": GATES, "promote": True}, **file)

    approve >> promote
    steps = {step.task_id: step.output for step in (train, quantize, evaluate)}
    close = ops.CloseRunOperator(task_id="close_run", steps=steps, trigger_rule="all_done", **each)
    promote >> close
