"""Options of the suite."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from pathlib import Path

import pytest

from tfmot_ops.system.scratch import temporary_files_in_scratch

GOLDEN = Path(__file__).parent / "golden"

# What collection imports stays, TensorFlow's 344,000 objects among it: to look at them for garbage again and again
# is a third of what the tests of the core cost.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Give TensorFlow's generated files a folder that the next run removes: tests that are killed leave them behind."""
    # The folders of `tmp_path` stay where they can be looked at after a failure.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    stack = contextlib.ExitStack()
    stack.enter_context(temporary_files_in_scratch())
    config.add_cleanup(stack.close)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)  # as the command `tfmot-ops` sets it
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
