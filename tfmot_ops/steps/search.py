"""The step that ends a search in a DAG: it chooses among the candidates, and makes table, page and picture."""

from __future__ import annotations

from tfmot_ops.contract import ArtifactFormat, ChooseOptions
from tfmot_ops.search.report import Ended, lines, write
from tfmot_ops.steps.work import Work

_FORMATS = {"page": ArtifactFormat.HTML, "picture": ArtifactFormat.PNG, "table": ArtifactFormat.CSV}


def choose(work: Work[ChooseOptions]) -> None:
    """Choose among the candidates that meet all goals; a search without one does not fail this step."""
    options = work.options
    ended = Ended(
        options.name, options.target, options.goals, options.found, options.left_out, everything=options.everything
    )
    for name, path in write(ended, work.workdir, work.progress.message).items():
        # The same file names as those of the command, whose stem is not the output's name.
        work.outputs[name] = work.store.put(path, path.stem, _FORMATS[name])
    text, best = lines(ended), ended.best
    work.parameters |= {
        "search": "\n".join(text),
        "chosen": best.candidate.name if best else None,
        "chosen_run": best.run_id if best else None,
    }
    if best is not None:
        work.measure(best.metrics)
        work.given_headline = best.headline
        if best.file is not None:
            work.outputs["tflite"] = best.file
    for line in text:
        work.progress.message(line)
