"""Float model -> quantisation-aware model: which quantisers go where, and their ranges."""
