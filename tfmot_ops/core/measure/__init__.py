"""Accuracy, agreement, noise by layer, latency and memory of models and TFLite files."""
