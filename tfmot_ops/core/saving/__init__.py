"""Saving and loading of models, pruned and quantised models included, with checks of untrusted files."""
