"""One cell in a process of its own: `python -m tfmot_ops.sweep.run.cell ARCHITECTURE RECIPE RESULT [SEED]`."""

from __future__ import annotations

import sys
from pathlib import Path

from tfmot_ops.sweep.run.limits import imported_for_good
from tfmot_ops.system import files
from tfmot_ops.system.processes import die_with_parent


def main(arguments: list[str]) -> int:
    """Run a cell, print each stage on stderr, and write its CompatResult atomically.

    RECIPE is a recipe's name, or a file with a recipe as JSON.
    """
    name, recipe_text, path = arguments[0], arguments[1], Path(arguments[2])
    seed = int(arguments[3]) if len(arguments) > 3 else 0  # noqa: PLR2004 - the optional fourth
    die_with_parent()
    with imported_for_good():
        from tfmot_ops import recipes
        from tfmot_ops.contract import Recipe, Stage
        from tfmot_ops.models.architectures import architecture
        from tfmot_ops.sweep.run.check import check_architecture

    is_file = Path(recipe_text).is_file()
    recipe = (
        Recipe.model_validate_json(Path(recipe_text).read_text(encoding="utf-8"))
        if is_file
        else recipes.decode(recipe_text)
    )

    def on_stage(stage: Stage) -> None:
        sys.stderr.write(f"stage: {stage.value}\n")
        sys.stderr.flush()

    result = check_architecture(architecture(name), recipe, seed=seed, on_stage=on_stage)
    files.write(path, result.model_dump_json(indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
