"""A TFLite file as an MLflow pyfunc model.

MLflow copies this Python file into the model and runs it where the model is loaded, so it does not import tfmot_ops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class TFLiteModel(PythonModel):
    """Inputs and outputs are real values; for an int8 file they are quantised and dequantised with its scales."""

    def load_context(self, context: Any) -> None:
        """Read the file that was logged as the artifact `tflite`."""
        self._interpreter = Interpreter(model_path=context.artifacts["tflite"], num_threads=1)

    # Without annotations, from which MLflow would infer a signature instead of the logged one.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Run the file sample by sample.

        Args:
            context: of MLflow; unused, the file is read once.
            model_input: real values, [samples, ...].
            params: unused.

        Returns:
            Real values, [samples, classes].
        """
        del context, params
        source, target = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()[0]
        self._interpreter.allocate_tensors()
        rows = []
        for sample in np.asarray(model_input):
            self._interpreter.set_tensor(source["index"], _quantize(sample[np.newaxis], source))
            self._interpreter.invoke()
            rows.append(_dequantize(self._interpreter.get_tensor(target["index"]), target))
        return np.concatenate(rows)


def _quantize(values: Any, tensor: dict[str, Any]) -> Any:
    scale, zero_point = tensor["quantization"]
    if not scale:
        return values.astype(tensor["dtype"])
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(tensor["dtype"])


def _dequantize(values: Any, tensor: dict[str, Any]) -> Any:
    scale, zero_point = tensor["quantization"]
    return (values.astype(np.float32) - zero_point) * scale if scale else values


set_model(TFLiteModel())
