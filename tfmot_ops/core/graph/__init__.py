"""The layer graph of a model: read, normalise, rebuild in one pass."""
