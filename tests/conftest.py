"""Options of the suite."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"

# What collection imports stays, TensorFlow's 344,000 objects among it: to look at them for garbage again and again
# is a third of what the tests of the core cost.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regen", action="store_true", help="rewrite the golden files instead of comparing with them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests wait for servers and processes first: on several workers, the short ones fill the gaps."""
    long = ("orchestration", "sweep", "places", "cli", "tools")
    items.sort(key=lambda item: item.path.parent.name not in long)


@pytest.fixture
def golden(request):
    """Compare a text with a golden file; `--regen` writes it."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regen"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; make it with --regen and look at it"
        remedy = (
            "where the change is meant, --regen rewrites it; a document of the contract needs a new version instead"
        )
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; {remedy}"

    return compare
