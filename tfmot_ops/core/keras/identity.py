"""Keys for objects that cannot be keys themselves."""

from __future__ import annotations


class Itself:
    """Any object as a key of a dictionary or a member of a set, equal only to the same object's key.

    For `tf.Variable` and Keras' symbolic tensors, whose `==` compares values and which have no hash. Layers, and the
    calls and tensors of a `Graph`, are keys without it.
    """

    __slots__ = ("what",)

    def __init__(self, what: object) -> None:
        # Held, not only counted by its id: Python gives the id of an object that is gone to another one.
        self.what = what

    def __hash__(self) -> int:
        return id(self.what)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other.what is self.what
