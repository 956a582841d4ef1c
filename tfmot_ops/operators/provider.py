"""The provider information that Airflow's provider manager reads."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from tfmot_ops.system.environment import SECTION, VARIABLES, Variable

_OPERATORS = "tfmot_ops.operators"
#: Version of this package that added the connection type and the options.
_ADDED = "0.1.0"


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
                "python-modules": [f"{_OPERATORS}.{name}" for name in ("step", "register", "sweep", "approval")],
            }
        ],
        "hooks": [{"integration-name": "tfmot_ops", "python-modules": [f"{_OPERATORS}.mlflow_hook"]}],
        "connection-types": [_connection_type()],
        "extra-links": [f"{_OPERATORS}.links.MlflowRunLink"],
        "notifications": [f"{_OPERATORS}.notify.{name}" for name in ("LogNotifier", "WebhookNotifier")],
        "config": {
            SECTION: {
                "description": "Settings of the package tfmot-ops; an environment variable of a setting comes first.",
                "options": {each.option: _option(each) for each in VARIABLES if each.option is not None},
            }
        },
    }


def _connection_type() -> dict[str, Any]:
    """The form of a connection to MLflow in Airflow's UI; `MlflowHook` says what the fields mean."""
    return {
        "connection-type": "tfmot_ops_mlflow",
        "hook-class-name": f"{_OPERATORS}.mlflow_hook.MlflowHook",
        "hook-name": "MLflow (tfmot-ops)",
        "conn-fields": {
            "token": {
                "label": "Token",
                "description": "For a server that takes a token; leave login and password empty then.",
                "schema": {"type": ["string", "null"], "format": "password"},
            },
            "ui": {
                "label": "Address in a browser",
                "description": "For links to runs, where people open MLflow by another address than the steps.",
                "schema": {"type": ["string", "null"]},
            },
        },
        "ui-field-behaviour": {
            "hidden-fields": [],
            "relabeling": {"schema": "Scheme (http or https)"},
            "placeholders": {"host": "mlflow.example", "port": "5000", "schema": "https"},
        },
    }


def _option(variable: Variable) -> dict[str, Any]:
    """An option of the section as Airflow lists it."""
    return {
        "description": f"{variable.does} The variable {variable.name} comes first. Default: {variable.default}.",
        "version_added": _ADDED,
        "type": "string",
        "example": None,
        "default": None,
        **({"sensitive": True} if variable.is_secret else {}),
    }
