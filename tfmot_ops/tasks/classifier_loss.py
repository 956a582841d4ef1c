"""The loss that fits a classifier's outputs, and the labels that fit a loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, TensorLike
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.training.train_step import Outputs
from tfmot_ops.errors import UnsupportedModelError

_L = keras.layers

#: Activations whose values are probabilities, by the last part of the function's or layer's name.
_PROBABILITIES = frozenset({"softmax", "softmax_v2", "sigmoid", "hard_sigmoid"})
#: Layers after which probabilities are still probabilities, and logits still logits.
_PASSES_ON = (_L.Reshape, _L.Flatten, _L.Permute, _L.Dropout)
#: How far from 1 the sum of a row of probabilities may be; float16 outputs are rounded to three digits.
_SUM_TOLERANCE = 1e-2


def gives_logits(model: keras.Model, samples: object, *, sum_to_one: bool = True) -> bool:
    """Whether a classifier's outputs are logits, of any sign and size, and not probabilities.

    The activation of the last layer decides. If it is unknown, the outputs are examined: rows of probabilities are
    not negative and have the sum 1.

    Args:
        model: with one output [N, ..., classes].
        samples: inputs [N, ...], for a model whose last layer does not say it.
        sum_to_one: whether the probabilities of a sample add up to 1; those of independent labels do not.
    """
    name = _last_activation(model.outputs[0])
    if name is not None:
        return name not in _PROBABILITIES
    outputs = np.asarray(model.predict(samples, verbose=0), np.float64)
    if outputs.min() < 0.0 or outputs.max() > 1.0 + _SUM_TOLERANCE:
        return True
    is_row = sum_to_one and outputs.shape[-1] > 1
    return bool(is_row and np.abs(outputs.sum(axis=-1) - 1.0).max() > _SUM_TOLERANCE)


def class_outputs(model: keras.Model, samples: object, *, independent: bool = False) -> Outputs:
    """Whether outputs are logits or probabilities, of one class among several or of independent labels.

    Args:
        model: with one output [N, ..., classes]; one score alone tells two classes apart.
        samples: inputs [N, ...], for a model whose last layer does not say it.
        independent: whether each score is for a label of its own.
    """
    independent = independent or model.outputs[0].shape[-1] == 1
    logits = gives_logits(model, samples, sum_to_one=not independent)
    if independent:
        return Outputs.LABEL_LOGITS if logits else Outputs.LABEL_PROBABILITIES
    return Outputs.LOGITS if logits else Outputs.PROBABILITIES


def _last_activation(tensor: TensorLike) -> str | None:
    """Name of the activation that gives a Keras tensor; None where the layer does not say one."""
    layer, node_index, tensor_index = private.history(tensor)
    layer = inner_layer(layer)
    if isinstance(layer, keras.Model):
        return _last_activation(layer.outputs[tensor_index])
    activation = layer if isinstance(layer, _L.Softmax) else getattr(layer, "activation", None)
    if isinstance(layer, _PASSES_ON) or (isinstance(layer, _L.Activation) and activation is keras.activations.linear):
        return _last_activation(layer.get_input_at(node_index))
    called = getattr(layer, "symbol", None) or activation
    if called is None:
        return None
    if isinstance(called, str):  # of a function that is called as a layer: `nn.softmax`
        name = called.rpartition(".")[2]
        return name if name in _PROBABILITIES else None
    return str(getattr(called, "__name__", type(called).__name__)).lower()


def targets_for(model: keras.Model, x: object, labels: Array, num_classes: int) -> Callable[[Array], Array]:
    """Function that converts labels [N] to the targets with which a compiled classifier is trained.

    Keras' sparse losses take integer labels; Keras' other losses take one-hot vectors. A custom loss is tried with
    integer labels first, then with one-hot vectors.

    Args:
        model: compiled, with one output [N, classes].
        x: a few inputs [N, ...], with which loss and metrics are tried.
        labels: labels [N] of `x`.
        num_classes: how many classes the labels count.

    Returns:
        A function from labels [N] to labels [N] or one-hot vectors [N, num_classes].

    Raises:
        UnsupportedModelError: the loss or a metric takes neither.
    """

    def as_they_are(numbers: Array) -> Array:
        return numbers

    def one_hot(numbers: Array) -> Array:
        vectors: Array = keras.utils.to_categorical(numbers, num_classes)
        return vectors

    loss = _loss_name(model.loss)
    forms = {None: [as_they_are, one_hot], True: [as_they_are], False: [one_hot]}[_takes_numbers(model.loss)]
    reasons = []
    outputs = model(tf.nest.map_structure(tf.convert_to_tensor, x), training=False)
    for form in forms:
        try:
            _compute(model, x, form(labels), outputs)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            reasons.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        else:
            return form
    raise UnsupportedModelError(
        f"model {model.name} cannot be trained on class labels as it is compiled",
        required="a loss and metrics for class labels [N] or one-hot vectors [N, classes]",
        received=f"loss {loss}: {'; '.join(reasons)}",
        remedy="compile it with sparse_categorical_crossentropy or categorical_crossentropy, with metrics that fit, "
        "and save it again",
    )


def _compute(model: keras.Model, x: object, y: Array, outputs: object) -> None:
    """Compute loss and metrics as a training step does, and reset their state."""
    # Keras gives a loss labels with an axis of their own.
    targets = tf.convert_to_tensor(y[:, np.newaxis] if y.ndim == 1 else y)
    model.compute_loss(x, targets, outputs)
    model.compute_metrics(x, targets, outputs, None)
    model.reset_metrics()


def _takes_numbers(loss: object) -> bool | None:
    """Whether a loss takes integer labels; None for a custom loss, for which this is unknown."""
    while isinstance(loss, list | tuple | dict) and len(loss) == 1:
        loss = next(iter(loss.values() if isinstance(loss, dict) else loss))
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None
    if isinstance(loss, keras.losses.Loss) and hasattr(loss, "fn"):
        loss = loss.fn
    module = getattr(loss, "__module__", "") or ""
    if not module.startswith("tf_keras."):
        return None
    return "sparse" in _loss_name(loss).lower()


def _loss_name(loss: object) -> str:
    return loss if isinstance(loss, str) else str(getattr(loss, "__name__", type(loss).__name__))
