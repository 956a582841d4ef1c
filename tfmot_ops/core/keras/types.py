"""What this package relies on of Keras' and TensorFlow's objects, for readers and for mypy; neither ships types.

Each class here is a protocol: it says which attributes an object needs, and no object is made from it. What is not
spelled out is found by `__getattr__`, and is `Any`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

#: A NumPy array of any shape and type.
Array = npt.NDArray[Any]
#: What `get_config` of a layer, quantiser or optimizer gives: the constructor's arguments, by name.
Config = dict[str, Any]
#: The positional arguments of a call of a layer: tensors, lists or dicts of them, and constants.
Args = Sequence[Any]
#: The arguments of the same call that are given by name.
Kwargs = dict[str, Any]
#: One of TensorFlow's tensor functions, or any function that is traced: tensors in, tensors out.
Function = Callable[..., Any]
#: What the converter's own method for quantising gets besides the file: the types of inputs, outputs, activations and
#: biases, whether float operations may stay, whether variables are quantised, and options for finding faults.
ConverterTypes = tuple[Any, ...]
#: (float file, the same with calibrated ranges, types) -> the quantised file.
QuantizeFile = Callable[[bytes, bytes, ConverterTypes], bytes]
#: What Keras tells a callback of an epoch: metric name -> value.
Logs = Mapping[str, Any] | None


class TensorLike(Protocol):
    """A tensor, variable or NumPy array, of any shape [...], to compute with; symbolic or with values."""

    @property
    def shape(self) -> Any:
        """The size of each axis; the batch axis N comes first where there is one."""

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
        """Whether training changes it."""

    def assign(self, value: Any) -> Any:
        """Replace the values by others of the same shape."""

    def numpy(self) -> Any:
        """The values as an array of the variable's shape, or as a number."""

    def __getattr__(self, name: str) -> Any: ...


class Configured(Protocol):
    """What Keras saves as its class and the arguments of its constructor: layers, optimizers, metrics, quantisers."""

    def get_config(self) -> Config:
        """The constructor's arguments, by name."""

    @classmethod
    def from_config(cls, config: Config, /) -> Any:
        """Another object of this class, made from what `get_config` gave."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any, /) -> None: ...


class Layer(Configured, Protocol):
    """A `keras.layers.Layer`: a computation with its weights. Models and tfmot's wrappers are layers too."""

    name: str
    trainable: bool
    built: bool

    @property
    def weights(self) -> list[Any]:
        """The variables, those that train first; a layer of a lookup table has objects among them that are none."""

    @property
    def trainable_weights(self) -> list[Any]:
        """The variables that training changes; none for a frozen layer."""

    def get_weights(self) -> list[Any]:
        """The values of `weights`, as arrays in the same order."""

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Give the variables these values, arrays in the order of `weights`."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the result for an input of a shape."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's result; a layer that is not built makes its weights first."""


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
    """A Keras optimizer, of the present kind or of the older one in `keras.optimizers.legacy`."""


class Quantizer(Configured, Protocol):
    """A quantiser of tfmot: rounds a tensor to the levels of an integer type, with variables of its own."""

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        """The rounded tensor, of the shape of `inputs`; `weights` are the quantiser's variables by name."""


class Drawer(Protocol):
    """What draws a layer's random numbers: Keras' generator, or TensorFlow's in it."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any, /) -> None: ...
