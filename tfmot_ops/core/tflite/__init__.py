"""Conversion of a model to a TFLite file, and readers of TFLite files.

- `export`: `export_tflite` does all steps.
- `emit` (with `barriers` and `tensor_ops`): graph -> TensorFlow operations; `convert`: TensorFlow operations -> file.
- `late_weights` and `tables`: replace placeholders in the converted file, by large kernels and by lookup tables.
- For PTQ: `kept_float` (what stays in float), `observed_ranges` (chooses ranges), `file_ranges` (corrects them),
  `ptq_ai_edge` (the other back end).
- `flatbuffer`: operations of the schema, and the bytes of a changed file; `scopes` and `signature`: names in the file.
- `sparsity_check`: whether the file has the zeros that the recipe requires.
- `interpreter` runs a file, `profile` counts its operations, `file_report` says what became of each layer.
"""
