"""The provider information that Airflow's provider manager reads."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Describe this package to Airflow; the UI shows the operators' link only if it is listed here."""
    return {
        "package-name": "tfmot-ops",
        "name": "TensorFlow model optimisation",
        "description": "Prune, quantise and export tf_keras models to int8 TFLite, tracked in MLflow.",
        "versions": [version("tfmot-ops")],
        "integrations": [
            {
                "integration-name": "tfmot_ops",
                "external-doc-url": "https://www.tensorflow.org/model_optimization",
                "tags": ["software"],
            }
        ],
        "operators": [
            {
                "integration-name": "tfmot_ops",
                "python-modules": [f"tfmot_ops.operators.{name}" for name in ("step", "register", "sweep", "approval")],
            }
        ],
        "extra-links": ["tfmot_ops.operators.links.MlflowRunLink"],
    }
