"""The page of plots on a chain's parent run: one HTML file without scripts, which asks no network for anything.

It says how the chain stands among those with the same model and data, draws the headline over the sizes and the
latency of their files, draws the training curves, and lists the chains in a table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import mlflow
from mlflow.entities import Run

from tfmot_ops.contract import Headline
from tfmot_ops.search.page import COLOURS, render
from tfmot_ops.tracking import drawing
from tfmot_ops.tracking.artifacts import put_file
from tfmot_ops.tracking.children import Child
from tfmot_ops.tracking.labels import DATASET, MODEL
from tfmot_ops.tracking.pictures import TOLERATED, draw_curves_of
from tfmot_ops.tracking.siblings import Chain, beaten_by, chains_beside, on_front
from tfmot_ops.tracking.sweep_runs import run_address

#: Name of the page among the artifacts of the parent run.
PAGE = "plots.html"
#: Tag that says why the page is missing.
MISSING_TAG = "tfmot_ops.plots_missing"
_SHORT_ID = 8
# Cost -> (title of its axis, factor to the axis' unit).
_AXES = {
    "size_bytes": ("TFLite file in kB", 1 / 1000),
    "gzip_bytes": ("TFLite file, gzipped, in kB", 1 / 1000),
    "latency_ms": ("latency in ms, one thread of the step's machine", 1.0),
}


def put_page(
    client: mlflow.MlflowClient, run_id: str, children: Sequence[Child], headline: Headline, workdir: Path
) -> bool:
    """Store the page on the parent run; a retry replaces it. A tag names what cannot be drawn.

    Args:
        client: connected to the tracking server.
        run_id: the parent run, with its metrics, tags and data set.
        children: the runs of its steps.
        headline: the metric by which the task's models are compared.
        workdir: local folder for files in passing.

    Returns:
        Whether the run has the page.
    """
    try:
        html = _page(client, client.get_run(run_id), children, headline, workdir)
        if html is None:
            return False
        path = workdir / PAGE
        path.write_text(html, encoding="utf-8")
        put_file(client, run_id, path)
    except TOLERATED as error:
        client.set_tag(run_id, MISSING_TAG, f"{type(error).__name__}: {error}")
        return False
    return True


def _page(
    client: mlflow.MlflowClient, run: Run, children: Sequence[Child], headline: Headline, workdir: Path
) -> str | None:
    chains = chains_beside(client, run, headline)
    charts = below = ""
    if chains:
        title = "This chain among those with the same model and data" if len(chains) > 1 else "The file of this chain"
        charts = f"<h2>{title}</h2>{_tradeoff(run, chains, headline, workdir / 'tradeoff.svg')}"
    curves = workdir / "training_curves.svg"
    if draw_curves_of(client, children, headline, curves):
        below = f"<h2>Training, all steps one after the other</h2>{_svg(curves)}"
    if not charts and not below:
        return None
    subject = " on ".join(run.data.tags[tag] for tag in (MODEL, DATASET) if tag in run.data.tags)
    title = f"{subject or 'Model'}: {chains[0].recipe if chains else run.info.run_name}"
    main = f'<p class="main">{escape(verdict(chains, headline))}</p>'
    return render(title, main + charts, _rows(client, run, chains, headline), below)


def verdict(chains: Sequence[Chain], headline: Headline) -> str:
    """The main thing in a sentence or two: what the file of the first chain is, and whether another one is better."""
    if not chains:
        return "The chain ended before a TFLite file was measured."
    own, others = chains[0], chains[1:]
    worth = _worth(own, headline)
    text = f"{worth[0].upper()}{worth[1:]}{_drop(own, headline)}."
    if not others:
        return f"{text} No other chain has this model and this data yet."
    better = beaten_by(own, others, headline)
    if not better:
        each = "The other chain" if len(others) == 1 else f"Each of the {len(others)} other chains"
        return f"{text} {each} is worse in {headline.words} or in size."
    first = better[0]
    count = "One other chain is" if len(better) == 1 else f"{len(better)} of the {len(others)} other chains are"
    return (
        f"{text} {count} at least as good in {headline.words} and in size, and better in one: {first.recipe} has "
        f"{_worth(first, headline)}."
    )


def _worth(chain: Chain, headline: Headline) -> str:
    text = f"{headline.words} {headline.text(chain.value)}"
    sizes = {"size_bytes": "", "gzip_bytes": " gzipped"}
    parts = [_kilobytes(chain.costs[cost]) + words for cost, words in sizes.items() if cost in chain.costs]
    return f"{text} in {', '.join(parts)}" if parts else text


def _kilobytes(size: float) -> str:
    return f"{size / 1000:.1f} kB"


def _drop(chain: Chain, headline: Headline) -> str:
    if chain.drop is None:
        return ""
    amount = headline.size_text(chain.drop)
    if float(amount.split(maxsplit=1)[0]) == 0.0:
        return ", as good as the float model"
    return f", {amount} {'worse' if chain.drop > 0.0 else 'better'} than the float model"


def _tradeoff(run: Run, chains: Sequence[Chain], headline: Headline, path: Path) -> str:
    """The SVG with a point for each chain, with a tooltip."""
    factor, best = (100.0 if headline.is_share else 1.0), on_front(chains, headline)
    costs = {cost: words for cost, (words, _) in _AXES.items() if any(cost in chain.costs for chain in chains)}
    marks = []
    for place, chain in enumerate(chains):
        is_this, is_best = place == 0, chain.run_id in best
        marks.append(
            drawing.Mark(
                name=chain.recipe,
                value=factor * chain.value,
                costs={cost: _AXES[cost][1] * value for cost, value in chain.costs.items()},
                color=COLOURS["chosen" if is_this else "front" if is_best else "other"],
                is_this=is_this,
                is_labelled=is_this or is_best,
            )
        )
    reference = run.data.metrics.get(f"float_{headline.name}")
    words = f"{headline.words} of the file{' in %' if headline.is_share else ''}"
    drawing.draw_tradeoff(path, marks, costs, words, None if reference is None else factor * reference)
    key = (
        f"Green: this chain. Blue: every other chain is worse in {headline.words} or in a size. Grey: another chain is "
        "at least as good in all of them. The latency does not count, as it is noisy."
    )
    hints = {str(index): _hint(chain, headline) for index, chain in enumerate(chains)}
    return _svg(path, hints) + f"<p>{escape(key)}</p>"


def _hint(chain: Chain, headline: Headline) -> str:
    latency = f", {chain.costs['latency_ms']:.3g} ms" if "latency_ms" in chain.costs else ""
    return f"{chain.recipe}: {_worth(chain, headline)}{latency}; run {chain.run_id[:_SHORT_ID]}"


def _svg(path: Path, hints: dict[str, str] | None = None) -> str:
    """An SVG file as a part of a page; the points of `draw_tradeoff` get tooltips."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :].replace("<svg ", '<svg class="chart" ', 1)
    return re.sub(
        r'<g id="mark-\d+-(\d+)">',
        lambda found: f"{found[0]}<title>{escape((hints or {}).get(found[1], ''))}</title>",
        text,
    )


def _rows(client: mlflow.MlflowClient, run: Run, chains: Sequence[Chain], headline: Headline) -> list[list[str]]:
    """The table of the chains, the best one first."""
    from markupsafe import Markup

    if not chains:
        return []
    best = on_front(chains, headline)
    rows = [["", "recipe", headline.words, "drop", "file", "gzipped", "latency", "sparsity", "run"]]
    for chain in sorted(chains, key=lambda each: -each.value if headline.higher_is_better else each.value):
        address = run_address(client.tracking_uri, str(run.info.experiment_id), chain.run_id)
        link: str = chain.run_id[:_SHORT_ID]
        if address.startswith("http"):
            link = Markup('<a href="{}" target="_blank" rel="noopener">{}</a>').format(address, link)
        drop, costs = chain.drop, chain.costs
        rows.append([
            "this chain" if chain is chains[0] else "front" if chain.run_id in best else "",
            chain.recipe,
            headline.text(chain.value),
            "-" if drop is None else ("-" if drop < 0 else "") + headline.size_text(drop),
            *(_kilobytes(costs[cost]) if cost in costs else "-" for cost in ("size_bytes", "gzip_bytes")),
            f"{costs['latency_ms']:.3g} ms" if "latency_ms" in costs else "-",
            "-" if chain.sparsity is None else f"{chain.sparsity:.1%}",
            link,
        ])  # fmt: skip
    return rows
