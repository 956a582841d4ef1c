"""Every code block of README and docs/ runs as it is printed, or says why it does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from doc_blocks import PAGES, ROOT, Block, blocks, commands
from pydantic import ValidationError

from tfmot_ops.contract import Policy, Recipe, Target, TrainingPlan
from tools.site.commands import commands as known_commands
from tools.site.commands import parameters

BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = sorted({block.page for block in BLOCKS if block.is_run})
COSTLY = {block.page for block in BLOCKS if block.is_costly}


@pytest.fixture(scope="module")
def answers(request, tmp_path_factory) -> dict[str, str]:
    """Page -> what failed in it, for the pages of the tests that were chosen, all run by one process."""
    pages = [
        item.callspec.params["page"]
        for item in request.session.items
        if item.path == request.path and "page" in getattr(getattr(item, "callspec", None), "params", {})
    ]
    folder = tmp_path_factory.mktemp("docs")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("TFMOT_OPS_", "MLFLOW_"))}
    environment |= {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    answer, log = folder / "answers.json", folder / "log.txt"
    with log.open("wb") as stream:
        command = [sys.executable, str(ROOT / "tests" / "docs" / "session.py"), str(answer), *pages]
        done = subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False)
    text = log.read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, text[-4000:]
    return {page: what and f"{what}\n{text[-4000:]}" for page, what in json.loads(answer.read_text()).items()}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in COSTLY else []) for page in RUN]
)
def test_the_blocks_of_a_page_run(page: str, answers: dict[str, str]) -> None:
    assert not answers[page], answers[page]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in {"sh", "python", "yaml", "toml", "json", "text", "{toctree}", "{eval-rst}"}
    if block.language == "toml":
        assert tomllib.loads(block.text)
    if block.language == "json":
        assert json.loads(block.text)
    if block.language == "yaml":
        assert block.file, "a comment `file: NAME` before it"
        assert _is_a_document(yaml.safe_load(block.text))


def _is_a_document(content: object) -> bool:
    for kind in (Recipe, TrainingPlan, Policy, Target):
        try:
            kind.model_validate(content)
        except ValidationError:
            continue
        return True
    return False


def _command_lines() -> list[tuple[str, str]]:
    inside = [(block.place, line) for block in BLOCKS if block.language == "sh" for line in commands(block.text)]
    inside = [
        (place, found[1])
        for place, line in inside
        if (found := re.search(r"(?:^|&& |bin/)tfmot-ops (.*?)(?: && |$)", line))
    ]
    prose = ((page, path.read_text(encoding="utf-8")) for page, path in PAGES.items() if "/adr/" not in page)
    return inside + [(page, line) for page, text in prose for line in re.findall(r"`tfmot-ops ([a-z][^`\n]*)`", text)]


@pytest.mark.parametrize(("place", "line"), _command_lines())
def test_a_command_of_a_page_exists_with_its_options(place: str, line: str) -> None:
    known = known_commands()
    command = next((name for name in known if re.match(rf"{name}\b", line)), None)
    groups = {name.partition(" ")[0] for name in known if " " in name}
    assert command or line in groups, f"{place}: no command {line}"
    if command:
        options = {name for each in parameters(known[command].callback) for name in each.names}
        written = set(re.findall(r"(?<=\s)--[a-z-]+", line))
        assert written <= options | {"--help"}, place
