"""Set 80 % of the weights to zero, keep the zeros through int8 training, and see what they save."""

import math

from tfmot_ops import core
from tfmot_ops.data import load_dataset
from tfmot_ops.models import build_model

BATCH, EPOCHS = 64, 3
data = load_dataset("digits")
x, y = data.x_train, data.y_train
model = build_model("resnet8", data.input_shape, data.num_classes, seed=0)
model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
dense = core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), calibration=data.x_calibration)

recipe = core.recipes.decode("sparse80_wi8_ai8")
steps = math.ceil(len(x) / BATCH)  # training steps of an epoch
pruned, _ = core.prune(model, recipe, end_step=steps * EPOCHS // 2)  # zeros grow for half of the training
pruned.fit(x, y, batch_size=BATCH, epochs=EPOCHS, callbacks=core.pruning_callbacks(), verbose=0)

stripped = core.strip(pruned)  # removes the wrappers of pruning, keeps the zeros
quantized, _ = core.quantize(stripped, recipe, calibration=data.x_calibration)
quantized.optimizer.learning_rate = 1e-4
quantized.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
sparse = core.export_tflite(quantized, recipe)  # refuses a file whose kernels have lost their zeros

for name, file in {"dense": dense, "sparse": sparse}.items():
    profile = core.profile_tflite(file)
    accuracy = core.evaluate(file, data.x_test, data.y_test)["accuracy"]
    print(f"{name}: accuracy {accuracy:.1%}, {profile.size_bytes:,} bytes, gzip {profile.gzip_bytes:,} bytes")
for layer, share in core.layer_sparsity(stripped).items():
    print(f"{layer}: {share:.0%} zeros")
