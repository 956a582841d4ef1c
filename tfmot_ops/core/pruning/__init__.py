"""Pruning: zeros in kernels, or whole filters removed.

- `wrappers`: `prune` wraps layers so that training zeroes weights, `strip` removes the wrappers.
- `channels` (with `channel_labels`): `prune_channels` removes filters.
- `sparsity`: which kernels a recipe prunes, and how many zeros they have. `opened` inlines custom layers before
  pruning.
"""
