"""Types of Keras' and TensorFlow's objects for mypy and readers, as neither package ships types.

Each class is a protocol: it lists the attributes that this package uses, and is never instantiated. Attributes that are
not listed are found by `__getattr__` and have the type `Any`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

#: A NumPy array of any shape and type.
Array = npt.NDArray[Any]
#: Result of `get_config` of a layer, quantiser or optimizer: the constructor's arguments by name.
Config = dict[str, Any]
#: The positional arguments of a layer's call: tensors, lists or dicts of tensors, and constants.
Args = Sequence[Any]
#: The keyword arguments of a layer's call.
Kwargs = dict[str, Any]
#: A function from tensors to tensors: a TensorFlow function, or a function that is traced.
Function = Callable[..., Any]
#: The arguments of the TFLite converter's quantisation method after the file: types of inputs, outputs, activations and
#: biases, whether float operations may stay, whether variables are quantised, and debug options.
ConverterTypes = tuple[Any, ...]
#: (float file, the same file with calibrated ranges, ConverterTypes) -> quantised file.
QuantizeFile = Callable[[bytes, bytes, ConverterTypes], bytes]
#: The `logs` that Keras passes to a callback: metric name -> value.
Logs = Mapping[str, Any] | None


class TensorLike(Protocol):
    """A tensor (symbolic or eager), variable or NumPy array of any shape."""

    @property
    def shape(self) -> Any:
        """The size of each axis; a batch axis N comes first."""

    @property
    def dtype(self) -> Any:
        """The type of the elements, of TensorFlow or NumPy."""

    def __getitem__(self, key: Any, /) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __neg__(self) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...


class Variable(TensorLike, Protocol):
    """A `tf.Variable`: a tensor whose values stay between calls and can be changed, such as a layer's weight."""

    @property
    def name(self) -> str:
        """The name in its layer, such as `conv/kernel:0`."""

    @property
    def trainable(self) -> bool:
        """Whether training changes the variable."""

    def assign(self, value: Any) -> Any:
        """Replace the values by an array of the same shape."""

    def numpy(self) -> Any:
        """The values as an array of the variable's shape, or as a number."""

    def __getattr__(self, name: str) -> Any: ...


class Configured(Protocol):
    """An object that Keras saves as class name and constructor arguments: layer, optimizer, metric or quantiser."""

    def get_config(self) -> Config:
        """The constructor's arguments, by name."""

    @classmethod
    def from_config(cls, config: Config, /) -> Any:
        """A new object of this class from the result of `get_config`."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any, /) -> None: ...


class Layer(Configured, Protocol):
    """A `keras.layers.Layer`: a computation with its weights. Models and tfmot's wrappers are layers too."""

    name: str
    trainable: bool
    built: bool

    @property
    def weights(self) -> list[Any]:
        """The variables, trainable ones first; for a lookup layer (StringLookup) also a table, not a variable."""

    @property
    def trainable_weights(self) -> list[Any]:
        """The variables that training changes; none for a frozen layer."""

    def get_weights(self) -> list[Any]:
        """The values of `weights`, as arrays in the same order."""

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the variables to arrays, in the order of `weights`."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The output shape for an input shape."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output; the first call creates the weights."""


class Model(Layer, Protocol):
    """A `keras.Model`: layers that are connected, with inputs and outputs."""

    @property
    def layers(self) -> list[Any]:
        """The layers directly in the model; a nested model is one of them."""

    @property
    def inputs(self) -> list[Any]:
        """The symbolic inputs, as a flat list."""

    @property
    def outputs(self) -> list[Any]:
        """The symbolic outputs, as a flat list."""


class Optimizer(Configured, Protocol):
    """A Keras optimizer, current or from `keras.optimizers.legacy`."""


class Quantizer(Configured, Protocol):
    """A quantiser of tfmot: rounds a tensor to the levels of an integer type, with variables of its own."""

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        """The rounded tensor, of the shape of `inputs`; `weights` are the quantiser's variables by name."""


class Rng(Protocol):
    """A layer's random number generator: Keras' `RandomGenerator`, or a `tf.random.Generator`."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any, /) -> None: ...
