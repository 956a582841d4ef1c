"""Runs the code blocks of pages in one process: `python session.py ANSWERS PAGE...`; ANSWERS becomes a JSON file.

The blocks of a page run in order in an empty folder. A shell block of nothing but commands `tfmot-ops ...` calls the
command's entry point here, as a process of its own would import TensorFlow for ten seconds; any other goes to bash.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from doc_blocks import Block, blocks, commands


def run_page(page: str) -> str:
    """Run the blocks of a page; what failed, or nothing."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in blocks(page):
                try:
                    _run(block, names)
                except BaseException:  # noqa: BLE001 - SystemExit too: whatever a block ends with is the answer
                    return f"{block.place} failed:\n{block.text}\n{traceback.format_exc()}"
        finally:
            os.chdir("/")
    return ""


def _run(block: Block, names: dict[str, Any]) -> None:
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
    elif block.is_run and block.language == "python":
        exec(compile(block.text, block.place, "exec"), names)  # noqa: S102 - the documentation's own code
    elif block.is_run:
        _shell(block.text)


def _shell(text: str) -> None:
    lines = commands(text)
    if all(re.fullmatch(r"tfmot-ops [^$|&;<>()`]*|tfmot-ops ([^$|;<>()`\"]|\"[^\"$`]*\")*", line) for line in lines):
        for line in lines:
            _command(shlex.split(line))
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)


def _command(words: list[str]) -> None:
    from tfmot_ops.cli import main

    sys.argv = words
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    gc.disable()  # as in the suite's conftest.py: collections look at all of TensorFlow's objects again and again
    target, pages, answers = sys.argv[1], sys.argv[2:], {}
    for page in pages:
        began = time.process_time()
        answers[page] = run_page(page)
        sys.stderr.write(f"== {page}: {time.process_time() - began:.1f} CPU-s\n")
    Path(target).write_text(json.dumps(answers), encoding="utf-8")
