"""Models by name, and the catalogue of architectures."""

from tfmot_ops.models.by_name import available_models, build, build_model, comes_trained

__all__ = ["available_models", "build", "build_model", "comes_trained"]
