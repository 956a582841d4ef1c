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
        self._path = context.artifacts["tflite"]

    # Without annotations, from which MLflow would infer a signature instead of the logged one.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Run the file sample by sample, each from a clean state.

        Args:
            context: of MLflow; unused.
            model_input: real values: an array [samples, ...], or for several inputs a dict, name -> array.
            params: unused.

        Returns:
            Real values: an array [samples, ...], or for several outputs a dict, name -> array.
        """
        del context, params
        interpreter = Interpreter(model_path=self._path, num_threads=1)
        run = interpreter.get_signature_runner()
        sources, targets = run.get_input_details(), run.get_output_details()
        given = model_input if isinstance(model_input, dict) else {next(iter(sources)): model_input}
        columns = {name: np.asarray(given[name]) for name in sources}
        rows = []
        for index in range(len(next(iter(columns.values())))):
            interpreter.reset_all_variables()
            results = run(**{name: _quantize(columns[name][index : index + 1], sources[name]) for name in sources})
            rows.append({name: _dequantize(results[name], targets[name]) for name in targets})
        empty = {name: np.zeros((0, *tensor["shape"][1:]), np.float32) for name, tensor in targets.items()}
        merged = {name: np.concatenate([row[name] for row in rows] or [empty[name]]) for name in targets}
        return merged if len(merged) > 1 else next(iter(merged.values()))


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
