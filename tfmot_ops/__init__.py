"""Prune, quantise and export tf_keras models to int8 TFLite, as Airflow pipelines tracked in MLflow."""

__version__ = "0.1.0"
