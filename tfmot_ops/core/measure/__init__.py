"""Accuracy, agreement, SQNR per layer, latency and memory of models and TFLite files."""
