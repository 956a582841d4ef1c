"""Reproducible, resumable training."""
