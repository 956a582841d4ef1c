"""Quantisation-aware training: float model -> model with quantisers, and the ranges of these.

- `qat`: `quantize` does all steps. `calibration` runs the model on samples, `observers` choose a range from the values
  of a tensor, `without_rounding` computes a QAT model in float.
- `scheme`: which call gets which quantisers, and which tensors share a range.
- `quantizers` (weights, and the wrapper of a layer), `range_quantizers` (activations), `folding` (what export
  multiplies a kernel by).
- `ranges`: the ranges of a QAT model as the file gets them; `scales`: how wide a range has to be for int8 kernels.
"""
