"""Reproducible training that can be resumed after a kill.

- `loop`: `fit`. `seeding` makes random numbers and the order of samples a function of seed and epoch; `checkpoint`
  saves the state after each epoch; `stopping` stops early.
- `optimizers`, `augmentation`, `train_step` (augmentation, distillation), `freezing`: the parts of a training plan.
- `batch_norm`: statistics from one batch; `convolutions`: a work-around for a fault of oneDNN.
"""
