"""Quantisation-aware training: placement of the quantisers, calibration of their ranges."""
