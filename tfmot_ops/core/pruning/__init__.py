"""Pruning: wrappers that zero kernel weights during training, their removal, and measures of sparsity."""
