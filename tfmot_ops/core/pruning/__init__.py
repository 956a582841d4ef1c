"""Kernels that get zeros while a model trains: wrapped, stripped, measured."""
