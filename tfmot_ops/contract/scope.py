"""Scope: which layers of a model a part of a recipe or of a training plan is for."""

from __future__ import annotations

from tfmot_ops.contract.document import Document


class Scope(Document):
    """The layers to which a recipe's sparsity or quantization, or a plan's `frozen`, applies.

    A selector is a layer's path (`block_1/conv`), a glob on paths (`block_*`), or `class:<Name>`. An empty
    `include` selects every layer that can be pruned or quantised by default. A selector that matches no layer is an
    error, so a renamed layer is never silently skipped.

    Attributes:
        include: selectors of the layers; empty for the default.
        exclude: selectors of layers that are left out, also where `include` names them.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
