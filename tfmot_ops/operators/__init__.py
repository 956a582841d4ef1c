"""Airflow operators; they load no TensorFlow and no MLflow."""
