"""The site that `make docs` built: each page is light, and has what the code makes for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tfmot_ops.cli.schemas import SCHEMAS
from tools.site.extension import MADE, filled

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "docs" / "_build" / "html"
_MOST_BYTES = 1_000_000


def _bytes(page: Path) -> int:
    pictures = {
        page.parent / name for name in re.findall(r'<img[^>]* src="([^":]+)"', page.read_text(encoding="utf-8"))
    }
    return sum(path.stat().st_size for path in (page, *pictures))


@pytest.mark.skipif(not SITE.exists(), reason="`make docs` has not built the site")
def test_a_page_with_its_pictures_has_less_than_a_megabyte() -> None:
    weights = {page.relative_to(SITE).as_posix(): _bytes(page) for page in SITE.rglob("*.html")}
    assert {page: weight for page, weight in weights.items() if weight > _MOST_BYTES} == {}
    assert {"index.html", "quickstart.html", "reference/commands.html", "reference/api/core.html"} <= weights.keys()


@pytest.mark.parametrize("name", MADE)
def test_each_table_from_the_code_is_in_a_page_and_complete(name: str) -> None:
    comment = f"<!-- made at build time: {name} -->"
    pages = [page for page in (ROOT / "docs" / "reference").glob("*.md") if comment in page.read_text(encoding="utf-8")]
    assert len(pages) == 1
    text = MADE[name]()
    assert text.count("\n| ") > 3
    # A cell is empty where nothing is the default, but a meaning is never empty.
    assert not re.search(r"\|\s*\|$", text, re.MULTILINE) or name == "operators"


def test_the_references_name_what_the_code_has() -> None:
    commands = filled("<!-- made at build time: commands -->")
    for name in ("run", "optimize", "search", "bundle", "sweep", "forecast", "registry promote", "doctor", "schema"):
        assert f"## tfmot-ops {name}\n" in commands
    assert "| `--json` |" in commands
    assert all(f"`{name}`" in commands for name in SCHEMAS)
    for field in SCHEMAS["recipe"].model_fields:
        assert field == "schema_version" or f"| `{field}` |" in MADE["recipe"]()


def test_a_misspelt_name_of_a_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        filled("<!-- made at build time: nothing -->\n")


def test_the_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^):#]+)[^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).is_file()] == []
