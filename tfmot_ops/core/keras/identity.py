"""Dictionary keys for objects without a hash."""

from __future__ import annotations


class IdentityKey:
    """Wraps an object as a key of a dict or a member of a set; two keys are equal if they wrap the same object.

    Needed for `tf.Variable` and Keras' symbolic tensors, which have no hash and whose `==` compares values. Layers, and
    the nodes and tensors of a `Graph`, are hashable and need no wrapper.

    Args:
        wrapped: the object.
    """

    __slots__ = ("wrapped",)

    def __init__(self, wrapped: object) -> None:
        # A reference, not only the id: Python may reuse the id of a deleted object.
        self.wrapped = wrapped

    def __hash__(self) -> int:
        return id(self.wrapped)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityKey) and other.wrapped is self.wrapped
