"""docs/layers.md is what the two reports say today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import layer_table

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"


def test_the_page_is_not_stale() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == layer_table.page(), "make layers, and look at what became otherwise"
    assert {f"| `{cls.__name__}` " for cls in layer_table.layer_classes()} == {
        line.partition(" |")[0] + " " for line in page.splitlines() if line.startswith("| `")
    }
