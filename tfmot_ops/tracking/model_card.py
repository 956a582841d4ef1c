"""The card of a registered version: what was done on which data, the figures, how to run the file, and its limits.

The card is the version's description in the registry, and `model_card.md` and `model_card.html` among the artifacts of
the run that registered it.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow

from tfmot_ops.contract import Artifact, Outcome, RegisterOptions, StepResult
from tfmot_ops.contract.figures import figure_table
from tfmot_ops.system.uri_secrets import hide
from tfmot_ops.tracking.artifacts import put_file
from tfmot_ops.tracking.children import children_of
from tfmot_ops.tracking.client import quiet
from tfmot_ops.tracking.labels import DATASET, MODEL, RECIPE, TASK

_DIGEST_TAG = "tfmot_ops.dataset_digest"
#: Characters of a version's description that every database of MLflow takes.
_LONGEST = 5000
_RUN = """```python
import numpy as np
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("{file}")
signature = interpreter.get_signature_runner()
details = signature.get_input_details()  # name -> shape, type, scale and zero point
print(signature(**{{name: np.zeros(each["shape"], each["dtype"]) for name, each in details.items()}}))
```

`mlflow.pyfunc.load_model("models:/{name}/{version}").predict(x)` takes and gives real values."""


@quiet()
def put_card(
    client: mlflow.MlflowClient,
    run_id: str,
    version: str,
    options: RegisterOptions,
    *,
    tflite: Artifact,
    parent: str | None,
) -> None:
    """Write the card of a version: description, tags and artifacts.

    Args:
        client: connected to the tracking server.
        run_id: run of the step that registered the version.
        version: number of the version.
        options: of the step that registered it.
        tflite: the file.
        parent: run of the whole chain; None for a step of its own.
    """
    children = children_of(client, parent) if parent else []
    results = [child.result for child in children if child.result is not None]
    labels = client.get_run(parent or run_id).data.tags
    text = card(labels, results, version, options, tflite)
    client.update_model_version(options.name, version, _shortened(text))
    tags = {tag: labels[tag] for tag in (MODEL, DATASET, TASK, RECIPE) if tag in labels}
    tags |= {_DIGEST_TAG: digest} if (digest := _parameter(results, "dataset_digest")) else {}
    for tag, value in tags.items():
        client.set_model_version_tag(options.name, version, tag, value)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("model_card.md", text), ("model_card.html", _page(options.name, version, text))):
            path = Path(folder) / name
            path.write_text(content, encoding="utf-8")
            put_file(client, run_id, path)


def _shortened(text: str) -> str:
    """The card, cut at the end of a line where MLflow's database takes no more."""
    if len(text) <= _LONGEST:
        return text
    rest = "\n\nThe whole card is `model_card.md` among the artifacts of the source run."
    return text[: _LONGEST - len(rest)].rpartition("\n")[0] + rest


def card(
    labels: Mapping[str, str],
    results: Sequence[StepResult],
    version: str,
    options: RegisterOptions,
    tflite: Artifact,
) -> str:
    """The card in Markdown.

    Args:
        labels: tags of the chain's run: model, data set, task, recipe.
        results: of the chain's steps, in order; empty for a file that no chain of this tracking server made.
        version: number of the version.
        options: of the step that registered it; their metrics are those of the step `evaluate`.
        tflite: the file.
    """
    done = [result.step_id for result in results if result.kind not in {"open_run", "register", "close_run"}]
    known = {"model": MODEL, "data set": DATASET, "task": TASK, "recipe": RECIPE}
    subject = [f"- {what}: `{labels[tag]}`" for what, tag in known.items() if tag in labels]
    digest = _parameter(results, "dataset_digest")
    parts = [
        f"# {options.name}, version {version}",
        "## What was done",
        "\n".join(
            [
                *subject,
                *([f"- digest of the data: `{digest}`"] if digest else []),
                *([f"- steps: {', '.join(done)}"] if done else []),
                f"- file: {tflite.size_bytes:,} bytes, sha256 `{tflite.sha256}`",
            ]
        ),
        "## Figures",
        figure_table(options.metrics, options.headline),
        *(["## Gates", "\n".join(f"- {_rule(rule)}" for rule in options.rules)] if options.rules else []),
        "## How to run it",
        _RUN.format(file=Path(tflite.uri).name, name=options.name, version=version),
        "## Limits",
        _limits(results),
    ]
    return hide("\n\n".join(parts)) + "\n"


def _rule(rule: Any) -> str:
    bounds = rule.model_dump(exclude_defaults=True)
    return f"`{bounds.pop('metric')}`: {', '.join(f'{name} {value}' for name, value in bounds.items())}"


def _limits(results: Sequence[StepResult]) -> str:
    lines = ["- The figures hold for data like the data set above; other data was not measured."]
    in_float = [
        f"`{layer.path}` ({layer.class_name}): {layer.reason}"
        for result in results
        if result.kind == "quantize"
        for layer in result.layers
        if layer.outcome is Outcome.KEPT_FLOAT
    ]
    lines += [f"- Computed in float: {text}" for text in in_float]
    return "\n".join(lines)


def _parameter(results: Sequence[StepResult], name: str) -> str:
    found = (result.parameters.get(name) for result in reversed(results))
    return next((value for value in found if isinstance(value, str)), "")


def _page(name: str, version: str, text: str) -> str:
    """The card as one HTML page without scripts; tables and code are shown as they are written in Markdown."""
    title = html.escape(f"{name}, version {version}")
    return (
        f"<!doctype html>\n<html lang='en'><meta charset='utf-8'><title>{title}</title>\n"
        "<body style='max-width: 60em; margin: 2em auto; font-family: sans-serif'>\n"
        f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>\n</body></html>\n"
    )
