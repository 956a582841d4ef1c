"""What a model or TFLite file is worth and what it costs.

- `predictions` runs models and files; `agreement`, `noise`, `sqnr_by_layer` and `sensitivity` compare outputs.
- `latency`, `memory`, `sparse_encoding` and `kernel_sparsity` measure a file.
"""
