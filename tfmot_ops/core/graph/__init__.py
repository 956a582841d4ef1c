"""The layer graph of a model: reading, normalisation, and rebuilding as a Keras model."""
