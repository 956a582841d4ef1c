"""Conversion of a model to a TFLite file, and readers of TFLite files."""
