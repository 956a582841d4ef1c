"""The description of a chain's parent run in Markdown: one sentence, the table of the steps, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from tfmot_ops.contract import Headline
from tfmot_ops.contract.step_table import MISSING, figure_cells, measured_a_model, table_titles
from tfmot_ops.system.uri_secrets import hide
from tfmot_ops.tracking.labels import DATASET, MODEL, RECIPE, TASK

#: Longest description: MLflow cuts a tag at 8000 characters.
_LONGEST = 7900
_LONGEST_MESSAGE = 1500
_MOST_ROWS = 40


@dataclass(frozen=True)
class StepRow:
    """What the description says of one step.

    Attributes:
        name: of the step.
        metrics: of the step; empty for one that failed.
        problem: why the step did not succeed; None for one that did.
        duration_s: wall time; None if it is not known.
        address: of the step's run, within MLflow's page; empty for a step without a run.
    """

    name: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    problem: str | None = None
    duration_s: float | None = None
    address: str = ""


def describe(
    tags: Mapping[str, str],
    rows: Sequence[StepRow],
    figures: Mapping[str, float],
    headline: Headline,
    *,
    links: Mapping[str, str],
    pictures: Mapping[str, str],
) -> str:
    """The description of a chain.

    Args:
        tags: of the parent run.
        rows: the steps, in order.
        figures: of the parent run, see `summary`.
        headline: the metric by which the task's models are compared.
        links: words -> address within MLflow's page.
        pictures: caption -> address within MLflow's page.

    Returns:
        Markdown without secrets, as long as MLflow takes it.
    """
    failed = [row for row in rows if row.problem is not None]
    outcome = _failure(failed) if failed else f"{_outcome(figures, headline)}."
    parts = [f"{_subject(tags)}: {outcome}", _table(rows[:_MOST_ROWS], headline)]
    parts += [f"```\n{_plain(row.problem or '')}\n```" for row in failed[:1] if row.problem]
    text = hide("\n\n".join(part for part in parts if part))[:_LONGEST]
    # Not hidden, as the view's address has a parameter that is called a key.
    shown = [f"[{words}]({address})" for words, address in links.items()]
    for link in [*shown, *(f"![{caption}]({address})" for caption, address in pictures.items())]:
        text += f"\n\n{link}" if len(text) + len(link) + 2 <= _LONGEST else ""
    return text


def artifact_address(run_id: str, path: str) -> str:
    """Address of an artifact within MLflow's page."""
    return f"get-artifact?run_uuid={run_id}&path={quote(path, safe='')}"


def _subject(tags: Mapping[str, str]) -> str:
    named = {name: _code(tags[tag]) for name, tag in (("model", MODEL), ("data", DATASET)) if tag in tags}
    text = " on ".join(named.values()) or "The model"
    text += f" ({tags[TASK]})" if TASK in tags else ""
    return text + (f", recipe {_code(tags[RECIPE])}" if RECIPE in tags else "")


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _failure(failed: Sequence[StepRow]) -> str:
    not_run = [row.name for row in failed if not row.address]
    broken = [row.name for row in failed if row.address] or not_run[:1]
    text = f"**failed** in {', '.join(map(_code, broken))}"
    rest = [name for name in not_run if name not in broken]
    return f"{text}; not run: {', '.join(map(_code, rest))}." if rest else f"{text}."


def _outcome(figures: Mapping[str, float], headline: Headline) -> str:
    name, words = headline.name, headline.words
    parts = []
    if f"float_{name}" in figures:
        parts.append(f"{headline.text(figures[f'float_{name}'])} as float model")
    if f"int8_{name}" in figures:
        parts.append(f"**{headline.text(figures[f'int8_{name}'])}** as TFLite file")
    if f"{name}_drop" in figures:
        parts.append(_drop(figures[f"{name}_drop"], headline) + _shares_of_drop(figures, headline))
    text = f"{words} {', '.join(parts)}" if parts else "no model was measured"
    if "compression" in figures:
        text += f"; the file is {figures['compression']:.1f} times smaller"
    return text


def _shares_of_drop(figures: Mapping[str, float], headline: Headline) -> str:
    if "pruning_drop" not in figures or "quantization_drop" not in figures:
        return ""
    parts = (f"{_drop(figures[f'{by}_drop'], headline)} by {by}" for by in ("pruning", "quantization"))
    return f" ({', '.join(parts)})"


def _drop(drop: float, headline: Headline) -> str:
    amount = headline.size_text(drop)
    if float(amount.split(maxsplit=1)[0]) == 0.0:
        return "no difference"
    return f"{amount} {'worse' if drop > 0.0 else 'better'}"


def _table(rows: Sequence[StepRow], headline: Headline) -> str:
    titles = table_titles(headline)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for row in rows:
        if row.problem is None and headline.name not in row.metrics and not measured_a_model(row.metrics):
            continue
        first, *others = figure_cells(row.metrics, headline)
        if row.problem is not None:
            first = "failed" if row.address else "not run"
        wall = MISSING if row.duration_s is None else f"{row.duration_s:.1f} s"
        name = f"[{row.name}]({row.address})" if row.address else row.name
        lines.append([name.replace("|", "\\|"), first, *others, wall])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(message: str) -> str:
    """A message within a block of code, which a fence in it would end."""
    text = message.replace("```", "'''")
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."
