"""One cell in a process of its own: `python -m tfmot_ops.sweep.cell ARCHITECTURE RECIPE RESULT`."""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run a cell and write its CompatResult, to a temporary name first."""
    name, recipe, path = arguments[0], arguments[1], Path(arguments[2])
    seed = int(arguments[3]) if len(arguments) > 3 else 0  # noqa: PLR2004 - the optional fourth
    from tfmot_ops.core import recipes
    from tfmot_ops.core.catalog import architecture
    from tfmot_ops.core.compat import check_architecture

    result = check_architecture(architecture(name), recipes.decode(recipe), seed=seed)
    part = path.with_suffix(".part")
    part.write_text(result.model_dump_json(indent=1))
    part.rename(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
