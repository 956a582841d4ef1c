"""The chains of an experiment that are compared with one chain: those with the same model and the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run

from tfmot_ops.contract import Headline
from tfmot_ops.search.front import front
from tfmot_ops.tracking.children import KIND_TAG
from tfmot_ops.tracking.labels import DATASET, MODEL, RECIPE

#: Most chains that are compared, the latest ones: a chart of more points would be hard to read.
MOST = 50
#: Metric of a parent run -> the cost that it measures, under the name that a search uses; less is better.
COSTS = {"tflite_size_bytes": "size_bytes", "tflite_gzip_bytes": "gzip_bytes", "tflite_latency_ms": "latency_ms"}


@dataclass(frozen=True)
class Chain:
    """One chain whose file was measured.

    Attributes:
        run_id: of its parent run.
        recipe: name of its recipe, or of its run if it has none.
        value: headline metric of its file.
        drop: how much worse that is than the float model's; None if it is not known.
        costs: `size_bytes`, `gzip_bytes` and `latency_ms` of its file, those that were measured.
        sparsity: of its file, in [0, 1]; None if it is not known.
    """

    run_id: str
    recipe: str
    value: float
    drop: float | None
    costs: Mapping[str, float]
    sparsity: float | None


def chains_beside(client: mlflow.MlflowClient, run: Run, headline: Headline) -> list[Chain]:
    """The chain of a parent run and those with the same model and data in its experiment, the latest `MOST`.

    Args:
        client: connected to the tracking server.
        run: the parent run; its chain comes first. Without tags of model and data, or without a measured file, no
            other chain is looked for.
        headline: the metric by which they are compared; chains without it are left out.
    """
    own = chain_of(run, headline)
    parts = [f"tags.`{KIND_TAG}` = 'open_run'"]
    for tag in (MODEL, DATASET):
        value = run.data.tags.get(tag)
        if own is None or value is None or ("'" in value and '"' in value):
            return [own] if own else []
        mark = '"' if "'" in value else "'"
        parts.append(f"tags.`{tag}` = {mark}{value}{mark}")
    digests = {given.dataset.digest for given in run.inputs.dataset_inputs} if run.inputs else set()
    if len(digests) == 1:
        # A data set may have been changed under its name.
        parts.append(f"dataset.digest = '{digests.pop()}'")
    newest_first = ["attributes.start_time DESC"]
    runs = client.search_runs([run.info.experiment_id], " and ".join(parts), max_results=MOST, order_by=newest_first)
    others = [chain_of(each, headline) for each in runs if each.info.run_id != run.info.run_id]
    return [own, *(other for other in others if other is not None)] if own else []


def chain_of(run: Run, headline: Headline) -> Chain | None:
    """The chain of a parent run; None if its file was not measured."""
    metrics, name = run.data.metrics, headline.name
    costs = {cost: metrics[metric] for metric, cost in COSTS.items() if metric in metrics}
    if f"int8_{name}" not in metrics or not costs:
        return None
    recipe = run.data.tags.get(RECIPE) or str(run.info.run_name)
    shown = {"drop": metrics.get(f"{name}_drop"), "sparsity": metrics.get("final_sparsity")}
    return Chain(str(run.info.run_id), recipe, metrics[f"int8_{name}"], costs=costs, **shown)


def on_front(chains: Sequence[Chain], headline: Headline) -> set[str]:
    """Ids of the chains that no other one beats in the headline and all sizes; the latency is too noisy to count."""
    return set(front({chain.run_id: {headline.name: chain.value, **chain.costs} for chain in chains}, headline))


def beaten_by(chain: Chain, others: Sequence[Chain], headline: Headline) -> list[Chain]:
    """The chains that are as good as this one in the headline and all sizes, and better in one; the best first."""
    better = [other for other in others if chain.run_id not in on_front([chain, other], headline)]
    return sorted(better, key=lambda other: -other.value if headline.higher_is_better else other.value)
