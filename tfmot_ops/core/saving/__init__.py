"""Saving and loading of models, pruned and quantised ones included.

- `files`: `save_model` and `load_model`; `keras_three` reads files of Keras 3, `own_layers` finds layers of packages.
- `safe_files` checks a file before it is loaded, with `safe_configs`, `safe_calls`, `safe_graphs`, `safe_names` and
  `model_size` for its parts.
"""
