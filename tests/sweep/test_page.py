"""The page of a sweep, in a real browser and as text."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tfmot_ops.contract import CompatResult, Judgement, Stage, Status, SweepResult
from tfmot_ops.sweep.report.page import render_page, write_page

NOW = datetime.now(UTC)
STAGES = list(Stage)
# Seconds of MobileNetV2's stages on two busy cores, and what was measured of its file.
SECONDS = (4.9, 3.1, 0.4, 0.2, 6.3, 7.8, 4.1, 9.7, 0.3, 2.2)
FILE = {
    "layers": 155.0,
    "parameters": 2_257_984.0,
    "int8_mac_fraction": 1.0,
    "float_ops": 0.0,
    "requantize_ops": 0.0,
    "sparsity": 0.5,
    "size_bytes": 2_632_104.0,
    "gzip_bytes": 1_533_812.0,
    "sqnr_db": 22.4,
    "ptq_sqnr_db": 19.8,
}
ATTACK = '<script>window.hurt = true</script><img src=x onerror="window.hurt = true"></script><b>'


def a_cell(
    name: str,
    recipe: str = "sparse50_wi8_ai8",
    *,
    failed: Stage | None = None,
    error_class: str | None = None,
    message: str = "",
    factor: float = 1.0,
    **changes,
) -> CompatResult:
    """A cell that passed, or failed at a stage; `factor` scales its seconds."""
    reached = STAGES if failed is None else STAGES[: STAGES.index(failed) + 1]
    left_out = () if recipe.startswith("sparse") else (Stage.PRUNE, Stage.STRIP)
    metrics = {f"{s}_s": SECONDS[STAGES.index(s)] * factor for s in reached if s not in left_out}
    metrics |= {f"{s}_peak_bytes": (0.9 + 0.1 * STAGES.index(s)) * 2**30 for s in reached if s not in left_out}
    metrics["peak_memory_bytes"] = 1.8 * 2**30 * factor
    return CompatResult(
        architecture=name,
        recipe=recipe,
        family=changes.pop("family", "mobilenet_v2"),
        status=Status.OK if failed is None else Status.FAILED,
        failed_stage=failed,
        error_class=error_class,
        error_type=None if failed is None else "CompatError",
        message=message,
        metrics=metrics | (FILE if failed is None else {}),
        versions={"tensorflow": "2.21.0"},
        **changes,
    )


def plain(family: str) -> dict[str, str]:
    return {"recipe": "wi8_ai8", "family": family}


def a_sweep(*cells: CompatResult, started: datetime = NOW, **changes) -> SweepResult:
    return SweepResult(
        sweep_id=f"{started:%Y%m%dT%H%M%S}-7",
        started_at=started,
        duration_s=1830.0,
        cells=cells,
        versions={"tensorflow": "2.21.0", "tfmot-ops": "0.1.0"},
        **changes,
    )


def the_sweep(started: datetime = NOW) -> SweepResult:
    """Three cells passed, a regression at export, a disagreement with a hostile message, a crash; one is missing."""
    refused = "error: 'tfl.transpose' op has mismatched quantized axes"
    return a_sweep(
        a_cell("MobileNetV2"),
        a_cell("MobileNetV2", "wi8_ai8", cached=True),
        a_cell("ResNet50", "wi8_ai8", family="resnet", factor=4.0),
        a_cell("DenseNet121", failed=Stage.EXPORT, error_class="conversion", message=refused, **plain("densenet")),
        a_cell("NASNetMobile", failed=Stage.NORMALIZE, error_class="disagreement", message=ATTACK, **plain("nasnet")),
        CompatResult(
            architecture="VGG16", status=Status.FAILED, error_class="crash", message="code -11", **plain("vgg16")
        ),
        started=started,
        judgement=Judgement(
            regressions={"DenseNet121/wi8_ai8": f"conversion at export: {refused}"},
            improvements={"ResNet50/wi8_ai8": "expected: fails with timeout; now: passes"},
            new={f"NASNetMobile/{ATTACK}": ATTACK},
            missing={"ResNet50/sparse50_wi8_ai8": "has no result"},
        ),
        repros={"DenseNet121/wi8_ai8": "repro DenseNet121.py"},
        run_url="http://127.0.0.1:5000/#/experiments/1/runs/0123",
    )


def history(count: int) -> list[SweepResult]:
    """One sweep a night, in which one more cell passes every tenth."""
    nights = []
    for night in range(1, count + 1):
        failed = Stage.EXPORT if night % 10 == 0 else None
        cells = (a_cell("MobileNetV2"), a_cell("MobileNetV2", "wi8_ai8", failed=failed))
        nights.append(a_sweep(*cells, started=NOW - timedelta(days=night), run_url=f"http://mlflow.test/{night}"))
    return nights


# --- as text -------------------------------------------------------------------------------------------------------


def test_what_comes_from_a_result_is_escaped():
    html = render_page(the_sweep())
    assert "<script>window" not in html
    assert "<img" not in html
    assert html.count("<script") == 2, "the data and our own"


def test_an_address_that_is_no_web_address_is_no_link():
    sweep = the_sweep().model_copy(
        update={"run_url": "javascript:alert(1)", "repros": {"VGG16/wi8_ai8": "javascript:1"}}
    )
    html = render_page(sweep)
    assert 'href="javascript:' not in html
    assert "javascript%3A1" in html, "a relative file of that name"


def test_a_cell_leads_to_its_own_run_on_the_web_and_to_its_script_beside_the_page():
    run, sweep = "http://127.0.0.1:5000/#/experiments/1/runs/4567", the_sweep()
    sweep = sweep.model_copy(update={"repros": {"VGG16/wi8_ai8": "repros/VGG16-wi8_ai8.py"}})
    html = render_page(sweep, (), {"VGG16/wi8_ai8": run, "ResNet50/wi8_ai8": "javascript:alert(1)"})
    row = html.split('<tr id="cell-VGG16%2Fwi8_ai8"')[1].split("<tr")[0]
    assert f'<a class="run" href="{run}" rel="noreferrer"' in row
    assert 'href="repros/VGG16-wi8_ai8.py"' in row
    assert html.count('class="run"') == 1


def test_the_trend_holds_thirty_sweeps_and_this_one_is_the_last():
    html = render_page(the_sweep(), [*history(40), the_sweep(NOW + timedelta(days=1))])
    trend = html.split('<div class="trends">')[1].split("</section>")[0]
    first, second = trend.split("</figure>")[:2]
    assert first.count("<circle") == second.count("<circle") == 30
    assert (NOW - timedelta(days=29)).date().isoformat() in first
    assert (NOW + timedelta(days=1)).date().isoformat() not in trend
    assert "1 of 2" in first, "the missing cell counts"


def test_no_cell_at_all_is_a_page_too():
    assert "0 of 1" in " ".join(render_page(a_sweep(judgement=Judgement(missing={"A/wi8_ai8": "gone"}))).split())
    assert "Nothing got worse" in render_page(a_sweep())


def test_a_page_is_written_whole(tmp_path):
    path = write_page(tmp_path / "page.html", the_sweep())
    assert path.read_text(encoding="utf-8").endswith("</html>")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def a_large_sweep(architectures: int) -> SweepResult:
    recipes = ("wi8_ai8", "sparse50_wi8_ai8", "sparse2of4_wi8_ai8", "wi8_ai8_ptq", "wi8_afp32")
    return a_sweep(
        *(
            a_cell(
                f"Architecture{number:04}",
                recipe,
                family=f"family{number % 40}",
                failed=STAGES[number % 10] if number % 7 == 0 else None,
                error_class="conversion" if number % 7 == 0 else None,
                message=f"required: a layer that exports\n  received: layer_{number % 90} of the model" * 8,
                factor=0.2 + number % 97 / 10,
            )
            for recipe in recipes
            for number in range(architectures)
        )
    )


def test_a_thousand_architectures_under_five_recipes_fit_in_a_page():
    size = len(render_page(a_large_sweep(1000), history(29)).encode())
    assert size < 4_000_000, f"{size / 1e6:.1f} MB"


# --- in Chromium ---------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    with api.sync_playwright() as playwright:
        # --no-sandbox: tests run as root in containers, where Chromium's own does not start.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens a sweep's page from disk; no request but that for the file may leave it, and no error be logged."""
    contexts, wrong = [], []

    def open_page(sweep: SweepResult, *, fragment: str = "", runs: dict[str, str] | None = None, **options):
        path: Path = write_page(tmp_path / "page.html", sweep, (), runs)
        contexts.append(chromium.new_context(viewport={"width": 1440, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)  # for a machine that runs much else
        own = path.as_uri()
        page.on("request", lambda request: request.url.startswith((own, "data:")) or wrong.append(request.url))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(own + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def shown(page) -> list[str]:
    return page.eval_on_selector_all(
        "#grid tr[data-i]", "all => all.filter(r => r.checkVisibility()).map(r => decodeURIComponent(r.id).slice(5))"
    )


def test_regressions_are_on_top_with_their_sentence(visit):
    page = visit(the_sweep())
    first = page.locator("main section").nth(0)
    assert "1 regression, 1 missing" in first.inner_text()
    section = page.locator("main section").nth(1)
    assert section.get_attribute("id") == "regressions"
    assert "DenseNet121/wi8_ai8 conversion at export: error: 'tfl.transpose'" in section.inner_text().replace("\n", " ")
    assert section.bounding_box()["y"] < 450
    assert section.locator("a.repro").get_attribute("href") == "repro%20DenseNet121.py"
    assert page.get_by_text("MLflow run").get_attribute("href") == the_sweep().run_url


def test_filter_by_text_recipe_family_status_and_class(visit):
    page = visit(the_sweep())
    assert len(shown(page)) == 7, "six cells and the missing one"
    page.locator("[name=text]").fill("mismatched QUANTIZED")
    assert shown(page) == ["DenseNet121/wi8_ai8"]
    assert page.locator("#shown").inner_text() == "1 of 7 cells"
    page.get_by_role("button", name="clear").click()
    page.get_by_text("7 cells", exact=True).wait_for()
    page.locator("[name=recipe]").select_option("sparse50_wi8_ai8")
    assert shown(page) == ["MobileNetV2/sparse50_wi8_ai8", "ResNet50/sparse50_wi8_ai8"]
    page.locator("[name=family]").select_option("resnet")
    assert shown(page) == ["ResNet50/sparse50_wi8_ai8"], "its family is known from another recipe"
    page.locator("[name=recipe]").select_option("")
    page.locator("[name=family]").select_option("")
    for status, names in {
        "missing": ["ResNet50/sparse50_wi8_ai8"],
        "cached": ["MobileNetV2/wi8_ai8"],
        "regressions": ["DenseNet121/wi8_ai8"],
        "improvements": ["ResNet50/wi8_ai8"],
    }.items():
        page.locator("[name=status]").select_option(status)
        assert shown(page) == names
    page.locator("[name=status]").select_option("passed")
    assert len(shown(page)) == 3
    page.locator("[name=error]").select_option("crash")
    assert shown(page) == []
    assert page.get_by_text("No cell fits the filter.").is_visible()


def test_a_filtered_view_has_an_address_and_a_link_to_a_hidden_row_shows_it(visit):
    page = visit(the_sweep(), fragment="#?error=crash")
    assert shown(page) == ["VGG16/wi8_ai8"]
    page.locator("#regressions li a").first.click()
    assert len(shown(page)) == 7
    page.get_by_role("button", name="disagreement").click()
    assert shown(page) == ["NASNetMobile/wi8_ai8"]
    assert page.url.endswith("#?error=disagreement")


def test_an_old_sweep_says_so_and_a_fresh_one_does_not(visit):
    notice = visit(the_sweep(NOW - timedelta(days=5))).locator("#stale")
    assert notice.is_visible()
    assert "5 days old" in notice.inner_text()
    assert not visit(the_sweep(NOW - timedelta(hours=47))).locator("#stale").is_visible()
    assert visit(the_sweep(NOW - timedelta(hours=49))).locator("#stale").is_visible()


def test_a_script_in_a_message_does_not_run(visit):
    page = visit(the_sweep())
    row = page.locator('#grid tr[data-e="disagreement"]')
    row.locator("td.f").hover()
    assert "<script>window.hurt" in page.locator("#tip").inner_text(), "as text"
    row.locator("td.f").click()
    assert "<script>window.hurt" in page.locator("#details pre").inner_text()
    assert page.evaluate("window.hurt") is None


def test_even_a_script_that_got_past_the_escaping_does_not_run(tmp_path, chromium):
    html = render_page(the_sweep()).replace("<main>", f"<main>{ATTACK}")
    (tmp_path / "hurt.html").write_text(html, encoding="utf-8")
    page = chromium.new_page()
    page.goto((tmp_path / "hurt.html").as_uri())
    assert page.evaluate("window.hurt") is None
    page.close()


def test_keyboard_reaches_a_cell_and_its_message(visit):
    page = visit(the_sweep(), runs={"DenseNet121/wi8_ai8": "http://mlflow.test/4567"})
    page.locator("#filter button").focus()
    # One stop for each head, one for the grid.
    for _ in range(21):
        page.keyboard.press("Tab")
    page.keyboard.press("End")
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.textContent") == "MobileNetV2"
    for key in ["ArrowDown"] * 2 + ["ArrowRight"] * 10:
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.textContent") == "\u2717 9.7"
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "export: failed here, 9.7 CPU-s, 1.6 GiB" in tip.inner_text()
    assert "mismatched quantized axes" in tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert "invoke: not reached" in tip.inner_text()
    page.keyboard.press("Enter")
    assert page.locator("#details a.repro").is_visible()
    link = page.locator("#details a.run")
    assert (link.inner_text(), link.get_attribute("href")) == ("MLflow run", "http://mlflow.test/4567")
    assert "\u2197" not in page.locator("#details p").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()
    assert page.evaluate("document.activeElement.className") == "n", "back where it was"


def test_states_differ_by_text_and_not_only_by_colour(visit):
    texts = visit(the_sweep()).eval_on_selector_all(
        "#grid tr[data-i] td", "all => all.map(c => [c.className, c.textContent])"
    )
    by_class = {css: {text for each, text in texts if each == css} for css in ("f", "n", "o", "p0", "p2")}
    assert all(text.startswith("\u2717") for text in by_class["f"])
    assert by_class["n"] == {"\u00b7"}
    assert by_class["o"] == {"\u2013"}
    assert all(text[0].isdigit() for text in by_class["p0"] | by_class["p2"])


def test_columns_can_be_ordered(visit):
    page = visit(the_sweep())
    page.get_by_role("button", name="CPU", exact=True).click()
    assert shown(page)[2:4] == ["ResNet50/wi8_ai8", "MobileNetV2/wi8_ai8"], "slowest first, within its recipe"


# Contrast of each key of the legend, as WCAG 2.2 computes it.
CONTRASTS = """() => {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(".key:not(.n)")].map((key) => {
    const style = getComputedStyle(key);
    const [dark, bright] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
    return [(bright + 0.05) / (dark + 0.05), key.className];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_square_in_light_and_dark(visit, scheme):
    page = visit(the_sweep(), color_scheme=scheme)
    worst = min(page.evaluate(CONTRASTS))
    assert worst[0] >= 4.5, f"contrast of {worst[1]} is {worst[0]:.1f}; WCAG 2.2 AA asks for 4.5"


def test_a_thousand_rows_open_and_are_filtered(visit):
    page = visit(a_large_sweep(200))
    session = page.context.new_cdp_session(page)
    # The page's own CPU time: the machine may run much else.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_s() -> float:
        found = session.send("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in found if each["name"] == "TaskDuration")

    before = cpu_s()
    page.locator("[name=text]").evaluate(
        """(text) => new Promise((done) => {
          text.value = "architecture0077";
          text.dispatchEvent(new Event("input", { bubbles: true }));
          requestAnimationFrame(() => requestAnimationFrame(done));
        })"""
    )
    took = cpu_s() - before
    assert page.locator("#shown").inner_text() == "5 of 1000 cells"
    assert took < 2, f"filtering took {took:.2f} CPU-s"
