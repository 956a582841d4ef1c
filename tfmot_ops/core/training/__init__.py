"""Reproducible training that can be resumed after a kill."""
