"""The layer graph of a model: read, normalised, and rebuilt as a Keras model.

Modules, in the order in which a model goes through them:

- `ir`: `Graph`, `Node` (one call of a layer) and `Tensor`. `run` computes a graph, `samples` makes batches for it.
- `read`: Keras model -> graph. `trace` records what subclassed models and custom layers compute.
- `normalize`: rewrites the graph to few kinds of calls, by `precision` (to float32), `custom` (inlines custom layers,
  with `base_class` and `trial`), `integer_inputs` (inputs of integers), `factors` and `clusters` (fuse elementwise
  functions to layers of `pointwise`, where `steepness`, `signs` and `elementwise` allow it), and `rewrite` (applies
  the `rules`).
- `operations`: the table of all operations, what TFLite does with each. `roles` looks up a call's row, `float_reasons`
  says why a call stays in float, `linear` computes a kernel's sums, `layers` has the layers that normalisation
  inserts.
- `divergence`, `weight_only`, `new_values`, `finite`: properties of a graph that decide what can be int8, and what is
  refused.
- `rebuild`: graph -> Keras model.
"""
