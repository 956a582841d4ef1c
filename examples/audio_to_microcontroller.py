"""From a folder of sounds to C++ source for a microcontroller: train, quantise, and write the device bundle."""

import subprocess
import wave
from pathlib import Path

import numpy as np

from tfmot_ops import core
from tfmot_ops.data import load_dataset
from tfmot_ops.models import build_model

RATE = 16000  # samples a second


def write_tones(folder: Path, clips: int) -> None:
    """Write half-second WAV files of two classes; put your own recordings here, one sub-folder a class."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE // 2) / RATE
    for name, hertz in {"low": 300, "high": 1200}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for clip in range(clips):
            tone = 0.3 * np.sin(2 * np.pi * hertz * rng.uniform(0.9, 1.1) * time) + rng.normal(0, 0.05, len(time))
            with wave.open(str(folder / name / f"{clip}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes((tone * 32767).astype("<i2").tobytes())


write_tones(Path("clips"), clips=150)
source = "audio:clips?seconds=0.5"
data = load_dataset(source)  # spectrograms [N, 24 frames, 40 bands, 1]
model = build_model("ds_cnn", data.input_shape, data.num_classes, seed=0)
model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
model.fit(data.x_train, data.y_train, batch_size=8, epochs=8, verbose=0)

file = core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), calibration=data.x_calibration)
Path("words.tflite").write_bytes(file)
print(f"float {core.evaluate(model, data.x_test, data.y_test)['accuracy']:.1%}")
print(f"int8 {core.evaluate(file, data.x_test, data.y_test)['accuracy']:.1%}, {len(file):,} bytes")

# The bundle has the model as a C++ array, the operations to register, the size of the arena, and test vectors.
command = ["tfmot-ops", "bundle", "words.tflite", "--target", "cortex_m", "--dataset", source, "--output", "bundle"]
subprocess.run(command, check=True)
print((Path("bundle") / "op_resolver.h").read_text())
