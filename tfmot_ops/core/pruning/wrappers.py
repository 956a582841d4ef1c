"""Wraps a float model's layers so that training prunes their kernels (`prune`), and unwraps them (`strip`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tfmot_ops.contract import LayerReport, Outcome, Recipe, Schedule, Sparsity
from tfmot_ops.core.graph.finite import require_finite_weights
from tfmot_ops.core.graph.ir import layer_paths
from tfmot_ops.core.graph.rebuild import copy_layer, without_random_values
from tfmot_ops.core.graph.roles import kernel_of, kernels
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.compiling import compile_like
from tfmot_ops.core.keras.identity import IdentityKey
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.policies import new_layers_with_policy
from tfmot_ops.core.keras.private import (
    PrunableLayer,
    PruneRegistry,
    PruningSummaries,
    UpdatePruningStep,
    pruning_impl,
    pruning_schedule,
    pruning_wrapper,
)
from tfmot_ops.core.keras.types import Array, Kwargs, Layer, TensorLike
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.pruning.opened import with_inlined_layers
from tfmot_ops.core.pruning.sparsity import prunable
from tfmot_ops.errors import RecipeError


class _Pruning(pruning_impl.Pruning):
    """tfmot's Pruning with an exact number of zeros.

    tfmot zeroes the weights below a threshold; in a kernel whose magnitudes are all equal, that is none of them.
    """

    def _update_mask(self, weights: TensorLike) -> tuple[Any, Any]:
        """(threshold, mask) for weights of any shape: the largest magnitudes stay; among equal ones, the first."""
        magnitudes = tf.reshape(tf.abs(weights), [-1])
        share = 1.0 - tf.cast(self._pruning_schedule(self._step_fn())[1], tf.float32)
        number = tf.cast(tf.maximum(tf.round(tf.cast(tf.size(magnitudes), tf.float32) * share), 1.0), tf.int32)
        values, places = tf.math.top_k(magnitudes, k=tf.size(magnitudes))
        stays = tf.cast(tf.range(tf.size(magnitudes)) < number, weights.dtype)
        mask = tf.scatter_nd(places[:, tf.newaxis], stays, tf.shape(magnitudes))
        return values[number - 1], tf.reshape(mask, tf.shape(weights))

    def _update_mask_sparsity_m_by_n(self, weights: TensorLike, m_by_n: tuple[int, int] = (2, 4)) -> Any:
        """Mask of the weights that stay, in the type of the weights, where tfmot's is float32."""
        return tf.cast(super()._update_mask_sparsity_m_by_n(weights, m_by_n), weights.dtype)


@keras.saving.register_keras_serializable("tfmot_ops")
class PruneLowMagnitude(pruning_wrapper.PruneLowMagnitude):
    """tfmot's pruning wrapper with the faults of version 0.8.1 fixed.

    tfmot does not save `sparsity_m_by_n`, does not prune depthwise kernels, and does not forward Keras masks (but
    passes one to layers whose `call` has no mask argument). It also hides the inner layer's state (`reset_states`) and
    activity regulariser from Keras.

    Args:
        layer: the layer to wrap.
        args: as for tfmot's wrapper.
        kernel_names: attributes of the layer that are pruned; None leaves the choice to tfmot.
        kwargs: as for tfmot's wrapper.
    """

    def __init__(
        self, layer: Layer, *args: object, kernel_names: tuple[str, ...] | None = None, **kwargs: object
    ) -> None:
        if kernel_names is not None:
            layer.get_prunable_weights = lambda: [kernel_of(layer, name) for name in kernel_names]
        # Also the policy: the wrapper casts the inputs that the inner layer computes with.
        super().__init__(layer, *args, **{"dtype": layer.dtype_policy, **kwargs})
        self.kernel_names = kernel_names
        self.supports_masking = layer.supports_masking
        # tfmot calls `layer.call` directly, but Keras adds the activity regulariser's loss in `layer.__call__`.
        private.copy_activity_regularizer(self, layer)
        # `Model.reset_states` resets only layers that are `stateful`.
        self.stateful = layer.stateful

    def call(self, inputs: TensorLike, training: bool | TensorLike | None = None, **kwargs: object) -> Any:
        """The inner layer's result; the mask is passed only if the layer's `call` has that argument."""
        if not private.call_signature(self.layer).expects_mask_arg:
            kwargs.pop("mask", None)
        return super().call(inputs, training=training, **kwargs)

    def compute_mask(self, inputs: TensorLike, mask: TensorLike | None = None) -> Any:
        """The inner layer's output mask."""
        return self.layer.compute_mask(inputs, mask)

    def reset_states(self) -> None:
        """Reset the states of the inner layer, a recurrent one."""
        self.layer.reset_states()

    def add_weight(self, name: str | None = None, *args: object, **kwargs: object) -> Any:
        """The new variable; that of a second kernel gets a numbered name, as a .h5 file needs unique names."""
        taken = sum(1 for weight in self.weights if weight.name.split("/")[-1].split(":")[0].startswith(str(name)))
        return super().add_weight(f"{name}_{taken}" if taken and name else name, *args, **kwargs)

    def build(self, input_shape: tf.TensorShape) -> None:
        """Build as tfmot does, but with the exact masks of `_Pruning`."""
        super().build(input_shape)
        step, variables, schedule = private.pruning_arguments(vars(self)["pruning_obj"])
        # Not the variables of mixed precision, which are read in float16 and cannot be assigned what was read.
        plain = [tuple(private.plain_variable(variable) for variable in group) for group in variables]
        self.pruning_obj = _Pruning(
            step, plain, schedule, self.block_size, self.block_pooling_type, self.sparsity_m_by_n
        )

    def get_config(self) -> dict[str, Any]:
        """The configuration of tfmot's wrapper, with `sparsity_m_by_n` and `kernel_names` added."""
        names = None if self.kernel_names is None else list(self.kernel_names)
        return {**super().get_config(), "sparsity_m_by_n": self.sparsity_m_by_n, "kernel_names": names}


def prune(model: keras.Model, recipe: Recipe, end_step: int | None = None) -> tuple[keras.Model, list[LayerReport]]:
    """Wrap the layers that a recipe prunes, in a copy that keeps the model's structure and its dtype policies.

    If custom layers contain layers with kernels (`class Block(Layer)`), the copy is a flat model in which these custom
    layers are replaced by their inner layers. Then the inner layers are pruned; scope and reports refer to them.

    Args:
        model: float model; it is not changed.
        recipe: a recipe with a sparsity.
        end_step: training step at which the schedule reaches the ratio. None applies the masks at once; training with
            `pruning_callbacks` then only keeps the zeros.

    Returns:
        The wrapped model, compiled like the original, and one report per layer.

    Raises:
        RecipeError: the recipe has no sparsity.
        ScopeError: a selector of the scope matches no layer.
        NotFiniteError: a weight is NaN or infinite; names the layer.
    """
    if recipe.sparsity is None:
        raise RecipeError(
            "nothing to prune",
            required="a recipe with a sparsity",
            received=f"recipe {recipe.name!r} without a sparsity",
            remedy="leave the prune step out, or add a sparsity to the recipe",
        )
    with new_layers_with_policy(model.dtype_policy):
        model = with_inlined_layers(model)
        require_finite_weights(model)
        found = prunable(model, recipe).values()
        chosen = {layer: tuple(kernel.attribute for kernel in pruned) for layer, pruned in found}
        pruned = _wrap_chosen(model, chosen, _pruning_arguments(recipe.sparsity, end_step))
    if end_step is None:
        _apply_masks(pruned)
    layers = [(path, inner_layer(layer)) for path, layer in layer_paths(model)]
    return pruned, [_report(path, layer, recipe, layer in chosen) for path, layer in layers]


def wrap_low_magnitude(
    to_prune: Layer | list[Layer],
    exceptions: Iterable[str] = (),
    *,
    pruning_policy: tfmot.sparsity.keras.PruningPolicy | None = None,
    **arguments: Any,
) -> Any:
    """Wrap a layer, a list of layers, or every prunable layer of a model, with tfmot's own arguments.

    Args:
        to_prune: a layer, a list of layers, or a model; layers of nested models are wrapped too.
        exceptions: names of layer classes that are not wrapped.
        pruning_policy: tfmot's `PruningPolicy`; layers that it does not allow are not wrapped.
        arguments: as for `tfmot.sparsity.keras.prune_low_magnitude`: `pruning_schedule`, `block_size`,
            `block_pooling_type`, `sparsity_m_by_n`.

    Returns:
        For a layer its wrapper, or the layer itself if it cannot be pruned; for a list the list of these; for a model
        a wrapped copy.
    """
    excluded = set(exceptions)

    def is_chosen(layer: Layer) -> bool:
        if type(layer).__name__ in excluded or not (pruning_policy is None or pruning_policy.allow_pruning(layer)):
            return False
        return bool(_default_kernels(layer)) or _tfmot_can_prune(layer)

    if isinstance(to_prune, list):
        return [wrap_low_magnitude(layer, excluded, pruning_policy=pruning_policy, **arguments) for layer in to_prune]
    if not isinstance(to_prune, keras.Model):
        wrap = is_chosen(to_prune)
        return PruneLowMagnitude(to_prune, kernel_names=_default_kernels(to_prune), **arguments) if wrap else to_prune
    if pruning_policy is not None:
        pruning_policy.ensure_model_supports_pruning(to_prune)
    chosen = {layer: _default_kernels(layer) for _, layer in layer_paths(to_prune) if is_chosen(layer)}
    with new_layers_with_policy(to_prune.dtype_policy):
        return _wrap_chosen(to_prune, chosen, arguments)


def _default_kernels(layer: Layer) -> tuple[str, ...] | None:
    """The kernels of a layer that are pruned by default; None leaves the choice to tfmot."""
    return tuple(kernel.attribute for kernel in kernels(layer) if kernel.pruned_by_default) or None


def _tfmot_can_prune(layer: Layer) -> bool:
    """Whether tfmot has weights to prune in a layer without kernels in the operation table, such as an LSTM."""
    # MultiHeadAttention creates its kernels at its first call; tfmot needs them before.
    if kernels(layer) or isinstance(layer, keras.layers.MultiHeadAttention):
        return False
    return isinstance(layer, PrunableLayer) or (PruneRegistry.supports(layer) and _has_matrix(layer))


def _wrap_chosen(model: keras.Model, chosen: Mapping[Layer, tuple[str, ...] | None], arguments: Kwargs) -> keras.Model:
    def wrap(layer: Layer, copy: Layer) -> Any:
        if layer not in chosen:
            return copy
        return PruneLowMagnitude(copy, kernel_names=chosen[layer], **arguments)

    wrapped = _copy_with(model, wrap)
    compile_like(wrapped, model)
    return wrapped


def pruning_callbacks(log_dir: str | None = None) -> list[Any]:
    """The callbacks for training a pruned model: the pruning step's update, and TensorBoard summaries in `log_dir`."""
    callbacks: list[Any] = [UpdatePruningStep()]
    if log_dir is not None:
        callbacks.append(PruningSummaries(log_dir=str(log_dir), update_freq="epoch"))
    return callbacks


def strip(model: keras.Model) -> keras.Model:
    """A copy of a pruned model without its wrappers, with the masks applied to the kernels, compiled like the model."""
    with new_layers_with_policy(model.dtype_policy):
        stripped = _copy_with(model, lambda _layer, copy: copy)
        compile_like(stripped, model)
    return stripped


def _pruning_arguments(sparsity: Sparsity, end_step: int | None) -> dict[str, Any]:
    """Constructor arguments of the wrapper: schedule and pattern."""
    pattern = {"sparsity_m_by_n": sparsity.n_of_m, "block_size": sparsity.block or (1, 1)}
    if end_step is None:
        schedule = pruning_schedule.ConstantSparsity(sparsity.ratio, begin_step=1, end_step=1, frequency=1)
    # In a single step, a polynomial schedule would end at its initial ratio.
    elif sparsity.schedule is Schedule.CONSTANT or sparsity.n_of_m or end_step <= 1:
        schedule = pruning_schedule.ConstantSparsity(
            sparsity.ratio, begin_step=1, end_step=max(end_step, 1), frequency=1
        )
    else:
        # About 100 updates, as each sorts every kernel.
        frequency = max(1, end_step // 100)
        # The last update must be a multiple of the frequency after the first, or the target ratio is not reached.
        last = max(2, 1 + (max(end_step, 2) - 1) // frequency * frequency)
        schedule = pruning_schedule.PolynomialDecay(
            sparsity.initial_ratio, sparsity.ratio, begin_step=1, end_step=last, frequency=frequency
        )
    return {"pruning_schedule": schedule, **pattern}


def _apply_masks(model: keras.Model) -> None:
    """Compute the masks of all wrappers from the present weights, and set the masked weights to 0."""
    for _, layer in layer_paths(model):
        if not hasattr(layer, "pruning_vars"):
            continue
        # tfmot computes an n-of-m mask only at step 1.
        layer.pruning_step.assign(1)
        if layer.sparsity_m_by_n or tuple(layer.block_size) != (1, 1):
            layer.pruning_obj.conditional_mask_update()
        else:
            for weight, mask, threshold in layer.pruning_vars:
                magnitudes = np.abs(weight.numpy())
                ratio = float(layer.pruning_schedule(1)[1])
                mask.assign(keep_mask(magnitudes, ratio).astype(magnitudes.dtype))
                threshold.assign(keep_threshold(magnitudes, ratio))
        layer.pruning_obj.weight_mask_op()


def keep_threshold(magnitudes: Array, ratio: float) -> float:
    """The smallest magnitude that stays, tfmot's threshold, computed without sorting the kernel.

    Args:
        magnitudes: magnitudes of a kernel's weights, any shape.
        ratio: fraction of the weights that becomes zero.
    """
    pruned = magnitudes.size - _keep_count(magnitudes.size, ratio)
    return float(np.partition(magnitudes, pruned, axis=None)[pruned])


def keep_mask(magnitudes: Array, ratio: float) -> npt.NDArray[np.bool_]:
    """Mask of the weights that stay: the largest; among equal magnitudes the first, so that the ratio is exact.

    Args:
        magnitudes: magnitudes of a kernel's weights, any shape.
        ratio: fraction of the weights that becomes zero.

    Returns:
        A boolean array of the same shape.
    """
    limit = keep_threshold(magnitudes, ratio)
    mask = magnitudes >= limit
    surplus = int(np.count_nonzero(mask)) - _keep_count(magnitudes.size, ratio)
    if surplus > 0:
        mask.flat[np.flatnonzero(magnitudes == limit)[-surplus:]] = False
    return np.asarray(mask, np.bool_)


def _keep_count(size: int, ratio: float) -> int:
    return max(round(float(np.float32(size) * np.float32(1 - ratio))), 1)


def _report(path: str, layer: Layer, recipe: Recipe, chosen: bool) -> LayerReport:
    """The row of a layer, with the reason why it is pruned or not."""
    name = type(layer).__name__
    if chosen and recipe.sparsity is not None:
        pattern = (
            "{} of {}".format(*recipe.sparsity.n_of_m) if recipe.sparsity.n_of_m else f"{recipe.sparsity.ratio:.0%}"
        )
        return LayerReport(path=path, class_name=name, outcome=Outcome.PRUNED, reason=f"{pattern} zeros by magnitude")
    if kernels(layer):
        reason = "not in the recipe's scope, or its shape does not take the pattern"
        if not layer.trainable:
            reason = (
                "frozen: it could not adapt to its zeros; name it in sparsity.scope.include to prune it all the same"
            )
    else:
        reason = f"kernels of a {name} are not pruned" if _has_matrix(layer) else "has no kernel"
    return LayerReport(path=path, class_name=name, outcome=Outcome.NOT_PRUNED, reason=reason)


def _has_matrix(layer: Layer) -> bool:
    """Whether a layer has, or will have once it is built, weights with two or more axes."""
    if not layer.built:
        return hasattr(layer, "cell") or hasattr(layer, "kernel_initializer")
    return any(len(weight.shape) > 1 for weight in layer.trainable_weights)


def _copy_with(model: keras.Model, wrap: Callable[[Layer, Layer], Layer]) -> keras.Model:
    """A copy with the model's structure, nested models included.

    Args:
        model: the original.
        wrap: (original layer without its wrapper, unbuilt copy) -> the layer to use in the copy of the model.
    """
    copies: list[tuple[Any, Any]] = []

    def clone(layer: Layer) -> Any:
        if isinstance(layer, keras.Model):
            return _clone(layer)
        inner = inner_layer(layer)
        copy = copy_layer(inner, inner.name) if not isinstance(layer, keras.layers.InputLayer) else _input_copy(layer)
        replacement = wrap(inner, copy)
        copies.append((layer, copy))
        return replacement

    def _clone(part: keras.Model) -> keras.Model:
        result = keras.models.clone_model(part, clone_function=clone)
        private.rename(result, part.name)
        return result

    with without_random_values():
        result = _clone(model)
    for layer, copy in copies:
        weights = _masked_weights(layer)
        if weights:
            copy.set_weights(weights)
    return result


def _masked_weights(layer: Layer) -> list[Any]:
    """Weights of the layer inside a wrapper, with masks applied: after the last training step the kernels have none."""
    masks = {IdentityKey(variable): mask.numpy() for variable, mask, _ in getattr(layer, "pruning_vars", ())}
    inner = inner_layer(layer)
    values = inner.get_weights()
    # `weights` of a StringLookup contains a table, which is not a variable but has no mask either.
    return (
        [value * masks.get(IdentityKey(weight), 1) for value, weight in zip(values, inner.weights, strict=True)]
        if masks
        else values
    )


def _input_copy(layer: Layer) -> Any:
    return type(layer).from_config(layer.get_config())
