"""Recurrent layers, step by step: LSTM, GRU and SimpleRNN over a known number of steps, and Bidirectional around them.

The converter leaves a recurrent layer of a QAT model in float. Step by step it consists of Dense layers, sums, products
and activations, which all are int8. All steps share their layers, so each weight and each range exists once. The
product of the inputs with the kernel is computed for all steps at once.

Equations: as tf_keras computes them (`tf_keras.layers.LSTMCell`, `GRUCell`, `SimpleRNNCell`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.activations import emit_activation
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import SlicingOpLambda, TFOpLambda
from tfmot_ops.core.keras.types import Array, Function, Layer

_L = keras.layers
#: More steps stay a loop in float: each step is some ten operations of the file, and of each training step.
MOST_STEPS = 128
#: [N, T, C]
_RANK = 3
_LAYERS = {_L.RNN, _L.LSTM, _L.GRU, _L.SimpleRNN}
#: Merge mode of Bidirectional -> the layer that merges.
_MERGES = {"sum": _L.Add, "mul": _L.Multiply}


def recurrent(node: Node, out: Rewriter) -> Any:
    """LSTM, GRU or SimpleRNN -> its steps; Bidirectional -> the steps of both directions, merged."""
    if type(node.layer) is _L.Bidirectional:
        return _bidirectional(node, out)
    arguments = _CallArguments.of(node)
    if arguments is None or not _is_supported(node.layer, arguments):
        return None
    steps = _Steps(out, node.layer, node.path, "", arguments)
    results, last = steps.run()
    value = steps.stacked(results) if node.layer.return_sequences else results[-1]
    return [value, *last] if node.layer.return_state else value


def _bidirectional(node: Node, out: Rewriter) -> Any:
    """Bidirectional -> the steps of both layers, and a layer that merges their results; None if unsupported."""
    layer, arguments = node.layer, _CallArguments.of(node)
    sides = {"forward_layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    if (
        arguments is None
        or arguments.states
        or layer.return_state
        or layer.merge_mode not in {*_MERGES, "ave", "concat"}
    ):
        return None
    if not all(_is_supported(side, arguments) for side in sides.values()):
        return None
    found = []
    for attribute, side in sides.items():
        steps = _Steps(out, side, f"{node.path}_{side.name}", f"{attribute}.", arguments)
        results, _ = steps.run()
        # The second layer goes backwards; its results are put in the order of the first one's.
        in_order = results if side is layer.forward_layer else results[::-1]
        found.append(steps.stacked(in_order) if side.return_sequences else results[-1])
    if layer.merge_mode == "concat":
        shape = (*found[0].shape[:-1], sum(part.channels or 0 for part in found))
        return out.call(_L.Concatenate(name=layer.name), node.path, found, shape=shape)
    if layer.merge_mode == "ave":
        total = out.call(_L.Add(name=f"{layer.name}_sum"), f"{node.path}_sum", found)
        return out.affine(node.path, total, 0.5, 0.0)
    return out.call(_MERGES[layer.merge_mode](name=layer.name), node.path, found)


@dataclass(frozen=True)
class _CallArguments:
    """What a recurrent layer is called with.

    Attributes:
        sequence: the inputs [N, T, C].
        states: the states [N, units] before the first step; none stands for zeros.
        mask: [N, T], which steps are real ones; None where all are.
    """

    sequence: Tensor
    states: list[Tensor]
    mask: Tensor | None

    @classmethod
    def of(cls, node: Node) -> _CallArguments | None:
        """The arguments of a call; None for more than `MOST_STEPS` steps, an unknown number, or other arguments."""
        first = node.args[0] if len(node.args) == 1 else None
        parts = list(first) if isinstance(first, list | tuple) else [first]
        parts += tf.nest.flatten(node.kwargs.get("initial_state") or [])
        mask = node.kwargs.get("mask")
        others = {name: node.kwargs[name] for name in node.kwargs.keys() - {"training", "initial_state", "mask"}}
        if any(value is not None for value in others.values()) or not (mask is None or isinstance(mask, Tensor)):
            return None
        found = [part for part in parts if isinstance(part, Tensor) and part.is_float]
        if not found or len(found) < len(parts):
            return None
        sequence, *states = found
        count = sequence.shape[1] if len(sequence.shape) == _RANK else None
        return cls(sequence, states, mask) if count and count <= MOST_STEPS and sequence.channels else None


def _is_supported(layer: Layer, arguments: _CallArguments) -> bool:
    """Whether a recurrent layer can be replaced by its steps: no option is set that the steps do not compute."""
    if type(layer) not in _LAYERS or type(layer.cell) not in _CELLS:
        return False
    # Under a mask, Keras gives zeros for the steps before the first real one, also where a state is given.
    if arguments.mask is not None and (arguments.states or (layer.zero_output_for_mask and not layer.return_sequences)):
        return False
    cell = layer.cell
    own = [cell.kernel_constraint, cell.recurrent_constraint, cell.bias_constraint, layer.activity_regularizer]
    return not (layer.stateful or layer.time_major or cell.recurrent_dropout or any(own))


class _Steps:
    """Emits the steps of one recurrent layer; all steps share one layer for each part."""

    def __init__(self, out: Rewriter, layer: Layer, path: str, prefix: str, arguments: _CallArguments) -> None:
        self.out = out
        self.layer = layer
        self.cell = layer.cell
        self.path = path
        #: Prefix of this layer's attributes in the user's layer: "forward_layer." in Bidirectional.
        self.prefix = prefix
        self.arguments = arguments
        self.units = int(self.cell.units)
        names = [weight.name.split(":")[0].rsplit("/", 1)[-1] for weight in self.cell.weights]
        values = dict(zip(names, self.cell.get_weights(), strict=True))
        self.kernel, self.recurrent_kernel = values["kernel"], values["recurrent_kernel"]
        self.bias: Array | None = values.get("bias")

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """(result [N, units] of each step, in the order in which they are computed; the states after the last)."""
        sequence, step_of = self.arguments.sequence, _CELLS[type(self.cell)]
        if self.cell.dropout:
            # Keras draws one mask for all steps.
            drop = _L.Dropout(self.cell.dropout, noise_shape=(None, 1, sequence.channels), name=f"{self.name}_dropout")
            sequence = self.out.call(drop, f"{self.path}_dropout", sequence)
        bias = None if self.bias is None else np.atleast_2d(self.bias)[0]
        inputs = self.dense("", self.kernel, bias, sequence)
        count = int(sequence.shape[1] or 0)
        zeros = self.zeros(inputs)
        states = self.arguments.states or [zeros] * (2 if step_of is _lstm else 1)
        results = []
        for step in reversed(range(count)) if self.layer.go_backwards else range(count):
            new = step_of(self, self.part(inputs, (slice(None), step), f"step_{step}"), states)
            result = new[0]
            if self.arguments.mask is not None:
                is_real = self.part(self.arguments.mask, (slice(None), slice(step, step + 1)), f"mask_{step}")
                parts = ("hidden_state", "carry_state")
                new = [self.choice(part, is_real, *pair) for part, *pair in zip(parts, new, states, strict=False)]
                result = self.choice("result", is_real, result, zeros) if self.layer.zero_output_for_mask else new[0]
            states = new
            results.append(result)
        return results, states

    def choice(self, part: str, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        """Emit `tf.where`: `yes` [N, units] where the condition [N, 1] is true, `no` [N, units] elsewhere."""
        layer = self.out.shared_layer(self.layer, part, lambda: TFOpLambda(tf.where, name=f"{self.name}_{part}"))
        return self._function(layer, part, (condition, yes, no), like=yes)

    @property
    def name(self) -> str:
        """The user's name of the layer."""
        return str(self.layer.name)

    def dense(self, part: str, kernel: Array, bias: Array | None, tensor: Tensor) -> Tensor:
        """Emit a Dense with a kernel [channels, units], one for all calls of a part; "" is the input kernel's."""
        of = self.cell
        regularizer = of.recurrent_regularizer if part else of.kernel_regularizer
        make = lambda name: _L.Dense(  # noqa: E731 - used once, below
            kernel.shape[1],
            use_bias=bias is not None,
            kernel_regularizer=regularizer,
            bias_regularizer=of.bias_regularizer if bias is not None else None,
            name=name,
            trainable=self.layer.trainable,
        )
        weights = [kernel] if bias is None else [kernel, bias]
        # A part of the user's kernel may have fewer zeros than the whole.
        is_whole = kernel is self.kernel or kernel is self.recurrent_kernel
        source = f"{self.prefix}cell.{'recurrent_kernel' if part else 'kernel'}" if is_whole else ""
        shape = (*tensor.shape[:-1], kernel.shape[1])
        return self.call(part, make, tensor, shape, weights=weights, source_kernel=source)

    def call(
        self,
        part: str,
        make: Function,
        inputs: Any,
        shape: tuple[int | None, ...],
        *,
        weights: list[Array] | None = None,
        source_kernel: str = "",
    ) -> Tensor:
        """Emit a call of the layer of a part, made by `make(name)` at its first call."""
        suffix = f"_{part}" if part else ""
        layer = self.out.shared_layer(self.layer, part or "input", lambda: make(f"{self.name}{suffix}"))
        path = f"{self.path}{suffix}"
        return self.out.call(layer, path, inputs, shape=shape, weights=weights, source_kernel=source_kernel)

    def merge(self, kind: Function, part: str, *parts: Tensor) -> Tensor:
        """Emit a sum, difference or product of two tensors of one shape."""
        return self.call(part, lambda name: kind(name=name), list(parts), parts[0].shape)

    def activate(self, tensor: Tensor, part: str, *, recurrent: bool = False) -> Tensor:
        """Emit the layer's activation, or the one of its gates."""
        function = self.cell.recurrent_activation if recurrent else self.cell.activation
        stand_in = Node(
            self.out.shared_layer(self.layer, f"of_{part}", lambda: _L.Layer(name=part)), self.path, (), {}, tensor
        )
        return emit_activation(stand_in, self.out, tensor, function, f"{self.path}_{part}")

    def part(self, tensor: Tensor, key: tuple[Any, ...], part: str) -> Tensor:
        """Emit `tensor[key]`; an integer in the key drops its axis."""
        shape = []
        for place, size in enumerate(tensor.shape):
            one = key[place] if place < len(key) else slice(None)
            if isinstance(one, slice):
                shape.append(size if size is None else len(range(*one.indices(size))))
        layer = SlicingOpLambda(tf.__operators__.getitem, name=f"{self.name}_{part}")
        # Keras records a slice as a dict, which a file can hold.
        recorded = tuple({"start": s.start, "stop": s.stop, "step": s.step} if isinstance(s, slice) else s for s in key)
        return self._function(layer, part, (tensor, recorded), like=tensor, shape=tuple(shape))

    def gate(self, tensor: Tensor, first: int, last: int, part: str) -> Tensor:
        """Emit the channels first * units to last * units of a tensor [N, channels]."""
        return self.part(tensor, (slice(None), slice(first * self.units, last * self.units)), part)

    def zeros(self, inputs: Tensor) -> Tensor:
        """The state [N, units] before the first step."""
        first = self.part(inputs, (slice(None), 0, slice(0, self.units)), "before")
        return self._function(TFOpLambda(tf.zeros_like, name=f"{self.name}_zeros"), "zeros", (first,), like=first)

    def stacked(self, results: list[Tensor]) -> Tensor:
        """Emit the results [N, units] of all steps as [N, T, units]."""
        batch, units = results[0].shape
        layer = TFOpLambda(tf.stack, name=f"{self.name}_sequence")
        return self._function(layer, "sequence", (results, 1), like=results[0], shape=(batch, len(results), units))

    def _function(
        self,
        layer: Layer,
        part: str,
        args: tuple[Any, ...],
        *,
        like: Tensor,
        shape: tuple[int | None, ...] | None = None,
    ) -> Tensor:
        """Emit a call of a TensorFlow function; its result has the type of `like`, and by default its shape."""
        result = self.out.call(layer, f"{self.path}_{part}", like, shape=like.shape if shape is None else shape)
        if result.producer is not None:
            result.producer.args = args
        return result


def _lstm(steps: _Steps, inputs: Tensor, states: list[Tensor]) -> list[Tensor]:
    """One step: inputs [N, 4 units] (kernel and bias applied), states h and c [N, units]; gates in order i, f, c, o."""
    hidden, carry = states
    summed = steps.merge(_L.Add, "sum", inputs, steps.dense("recurrent", steps.recurrent_kernel, None, hidden))
    both = steps.activate(steps.gate(summed, 0, 2, "input_and_forget"), "gates", recurrent=True)
    candidate = steps.activate(steps.gate(summed, 2, 3, "candidate_sum"), "candidate")
    result = steps.activate(steps.gate(summed, 3, 4, "output_sum"), "output", recurrent=True)
    kept = steps.merge(_L.Multiply, "kept", steps.gate(both, 1, 2, "forget"), carry)
    added = steps.merge(_L.Multiply, "added", steps.gate(both, 0, 1, "input_gate"), candidate)
    carry = steps.merge(_L.Add, "carry", kept, added)
    return [steps.merge(_L.Multiply, "hidden", result, steps.activate(carry, "carry_activation")), carry]


def _gru(steps: _Steps, inputs: Tensor, states: list[Tensor]) -> list[Tensor]:
    """One step: inputs [N, 3 units] (kernel and bias applied), state h [N, units]; gates in the order z, r, h."""
    (hidden,) = states
    kernel, split = steps.recurrent_kernel, 2 * steps.units
    if steps.cell.reset_after:
        bias = None if steps.bias is None else steps.bias[1]
        recurrent = steps.dense("recurrent", kernel, bias, hidden)
        gates = steps.gate(recurrent, 0, 2, "recurrent_gates")
    else:
        gates = steps.dense("recurrent", kernel[:, :split], None, hidden)
    summed = steps.merge(_L.Add, "sum", steps.gate(inputs, 0, 2, "input_gates"), gates)
    both = steps.activate(summed, "gates", recurrent=True)
    update, reset = steps.gate(both, 0, 1, "update"), steps.gate(both, 1, 2, "reset")
    if steps.cell.reset_after:
        past = steps.merge(_L.Multiply, "past", reset, steps.gate(recurrent, 2, 3, "recurrent_candidate"))
    else:
        past = steps.dense("past", kernel[:, split:], None, steps.merge(_L.Multiply, "reset_hidden", reset, hidden))
    candidate_sum = steps.merge(_L.Add, "candidate_sum", steps.gate(inputs, 2, 3, "input_candidate"), past)
    candidate = steps.activate(candidate_sum, "candidate")
    # The sum of z * h and (1 - z) * candidate, with one product.
    change = steps.merge(_L.Subtract, "change", hidden, candidate)
    return [steps.merge(_L.Add, "hidden", candidate, steps.merge(_L.Multiply, "kept", update, change))]


def _simple(steps: _Steps, inputs: Tensor, states: list[Tensor]) -> list[Tensor]:
    """One step: inputs [N, units] (kernel and bias applied), state h [N, units]."""
    recurrent = steps.dense("recurrent", steps.recurrent_kernel, None, states[0])
    return [steps.activate(steps.merge(_L.Add, "sum", inputs, recurrent), "hidden")]


#: Class of the cell -> what one step of it computes, from (inputs of the step, states) to the new states.
_CELLS: dict[type, Callable[[_Steps, Tensor, list[Tensor]], list[Tensor]]] = {
    _L.LSTMCell: _lstm,
    _L.GRUCell: _gru,
    _L.SimpleRNNCell: _simple,
}
