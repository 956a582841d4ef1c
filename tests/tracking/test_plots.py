"""The page of plots of a chain: which chains it compares, what it says first, and how it looks in a browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from recorded_chain import DATA, EVALUATED, Store

from tfmot_ops.contract import CloseRunOptions, Headline, QuantizeOptions, TrainOptions
from tfmot_ops.tracking.plots import MISSING_TAG, PAGE, verdict
from tfmot_ops.tracking.siblings import Chain, beaten_by, chains_beside, on_front

ACCURACY = Headline(name="accuracy")
RMSE = Headline(name="rmse", higher_is_better=False, is_share=False)
#: Recipe -> what was measured of its file.
SIBLINGS = {
    "wi8_ai8": {"accuracy": 0.945, "size_bytes": 94e3, "gzip_bytes": 83e3, "latency_ms": 0.03},
    "wi8_ai8_ptq": {"accuracy": 0.93, "size_bytes": 96e3, "gzip_bytes": 84e3},
    "sparse80_wi8_ai8": {"accuracy": 0.9, "size_bytes": 94e3, "gzip_bytes": 35e3, "latency_ms": 0.031},
}
OWN = {"size_bytes": 94e3, "gzip_bytes": 55e3, "latency_ms": 0.0305}
ATTACK = "<img src=x onerror=alert(1)>"


def closed(store: Store, metrics: dict[str, float] | None, **parameters: str) -> None:
    """A chain of which only the end is recorded; None for one that ended before its file was measured."""
    store.open(**parameters)
    store.step(CloseRunOptions(steps={"evaluate": metrics} if metrics else {}, headline=ACCURACY))


def trained(store: Store, accuracy: float) -> None:
    """A chain with a data set and epochs of two steps."""
    store.open()
    for options in (
        TrainOptions(dataset="digits", model="/models/own net.h5", epochs=2),
        QuantizeOptions(dataset="digits", recipe=store.recipe, epochs=2),
    ):
        store.step(options, parameters=DATA)
    metrics = {**EVALUATED, **OWN, "accuracy": accuracy}
    store.step(CloseRunOptions(steps={"evaluate": metrics}, headline=ACCURACY))


def page_of(store: Store) -> str:
    run_id = store.run().info.run_id
    return Path(store.client.download_artifacts(run_id, PAGE, str(store.folder))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("plots")
    for recipe, metrics in SIBLINGS.items():
        closed(Store(folder, recipe), metrics)
    closed(Store(folder, "other_model"), SIBLINGS["wi8_ai8"], model="mobilenet_like")
    closed(Store(folder, "other_data"), SIBLINGS["wi8_ai8"], dataset="fashion_mnist")
    closed(Store(folder, "failed"), None)
    store = Store(folder)
    trained(store, 0.94)
    return store


@pytest.mark.slow
def test_the_chains_with_the_same_model_and_data_are_compared(store):
    run = store.run()
    # The other chains of this test have no data set of their own, by whose digest MLflow would tell them apart.
    run.inputs.dataset_inputs.clear()
    found = chains_beside(store.client, run, ACCURACY)
    assert [chain.recipe for chain in found] == ["sparse50_wi8_ai8", *reversed(SIBLINGS)]
    assert (found[0].value, found[0].drop, found[0].sparsity, dict(found[0].costs)) == (0.94, 0.05, 0.5, OWN)
    assert {chain.recipe for chain in found if chain.run_id in on_front(found, ACCURACY)} == {
        "wi8_ai8",
        "sparse50_wi8_ai8",
        "sparse80_wi8_ai8",
    }


@pytest.mark.slow
def test_data_that_changed_under_its_name_is_not_compared(store):
    assert [chain.recipe for chain in chains_beside(store.client, store.run(), ACCURACY)] == ["sparse50_wi8_ai8"]
    again = Store(store.folder, "again")
    trained(again, 0.95)
    found = chains_beside(store.client, again.run(), ACCURACY)
    assert [chain.recipe for chain in found] == ["again", "sparse50_wi8_ai8"]
    assert "The other chain is worse in accuracy or in size." in page_of(again)
    assert "One other chain is at least" not in page_of(again)


def chain_of(recipe: str, value: float, size: float, gzip: float, drop: float | None = None) -> Chain:
    return Chain(recipe, recipe, value, drop, {"size_bytes": size, "gzip_bytes": gzip}, None)


def test_the_verdict_says_the_main_thing():
    own = chain_of("own", 0.9, 94e3, 80e3, drop=0.02)
    smaller, worse = chain_of("smaller", 0.9, 94e3, 70e3), chain_of("worse", 0.8, 90e3, 60e3)
    start = "Accuracy 90.0% in 94.0 kB, 80.0 kB gzipped, 2.0 points worse than the float model."
    assert verdict([own], ACCURACY) == f"{start} No other chain has this model and this data yet."
    assert verdict([own, worse, worse], ACCURACY) == (
        f"{start} Each of the 2 other chains is worse in accuracy or in size."
    )
    assert verdict([own, worse, smaller], ACCURACY) == (
        f"{start} One other chain is at least as good in accuracy and in size, and better in one: smaller has accuracy "
        "90.0% in 94.0 kB, 70.0 kB gzipped."
    )
    assert verdict([], ACCURACY) == "The chain ended before a TFLite file was measured."


def test_of_errors_less_is_better():
    own, less, more = (chain_of(str(value), value, 1e3, 1e3) for value in (4.0, 3.0, 5.0))
    assert beaten_by(own, [more, less], RMSE) == [less]
    assert "2 of the 3 other chains are" in verdict([own, less, less, more], RMSE)


def test_names_are_text(tmp_path):
    store = Store(tmp_path, ATTACK)
    closed(store, SIBLINGS["wi8_ai8"], model=f"a '{ATTACK}", dataset='b "')
    page = page_of(store)
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 2


def test_a_chain_without_a_file_and_without_epochs_has_no_page(store):
    run = Store(store.folder, "failed").run()
    assert PAGE not in {each.path for each in store.client.list_artifacts(run.info.run_id)}
    assert "Page of plots" not in run.data.tags["mlflow.note.content"]
    assert MISSING_TAG not in run.data.tags


def test_a_page_that_cannot_be_drawn_fails_nothing_and_is_told(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("no fonts")

    monkeypatch.setattr("tfmot_ops.tracking.drawing.draw_tradeoff", broken)
    store = Store(tmp_path)
    closed(store, SIBLINGS["wi8_ai8"])
    run = store.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags[MISSING_TAG] == "ValueError: no fonts"


# --- in Chromium ---------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")
def test_the_page_in_a_browser(store, tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = tmp_path / PAGE
    path.write_text(page_of(store), encoding="utf-8")
    asked, wrong = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)  # for a machine that runs much else
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: message.type in {"error", "warning"} and wrong.append(message.text))
        page.goto(path.as_uri())
        assert page.locator("h1").inner_text() == "own net.h5 on digits: sparse50_wi8_ai8"
        main = page.locator("p.main")
        assert main.inner_text().startswith("Accuracy 94.0% in 94.0 kB, 55.0 kB gzipped, 5.0 points worse")
        assert main.bounding_box()["y"] < 200
        charts = page.locator("svg.chart")
        assert charts.count() == 2, "the trade-off and the training curves"
        for chart in charts.all():
            box = chart.bounding_box()
            assert box["x"] >= 0
            assert box["width"] > 400
            assert box["x"] + box["width"] <= 1280
        text = page.locator("body").inner_text()
        words = charts.nth(0).evaluate("e => e.textContent")
        assert "TFLite file, gzipped, in kB" in words
        assert "latency in ms" in words
        assert "sparse50_wi8_ai8: accuracy 94.0% in 94.0 kB, 55.0 kB gzipped, 0.0305 ms; run" in words
        curves = charts.nth(1).evaluate("e => e.textContent")
        assert re.search(r"train.*quantize", curves, re.DOTALL)
        assert page.locator("tr.chosen td").nth(1).inner_text() == "sparse50_wi8_ai8"
        assert "This chain" in text or "this chain" in text
        assert page.locator("script").count() == 0
        browser.close()
    assert asked == [path.as_uri()]
    assert wrong == []
