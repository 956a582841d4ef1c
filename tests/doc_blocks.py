"""Reads the code blocks of the documentation's pages, with the comments that say what a block is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    if "_build" not in path.parts
}
_BLOCK = re.compile(r"^(?:<!-- (file|not run): (.+?) -->\n)?( *)```([^\n]*)\n(.*?)^\3```$", re.MULTILINE | re.DOTALL)
#: What costs seconds: training, or the conversion of a model.
_COSTLY = re.compile(r"tfmot-ops (optimize|search|bundle|sweep)|\.fit\(|core\.(quantize|prune|export_tflite)\(")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: path of the page in the checkout.
        line: number of the line of the opening fence.
        language: word behind the fence.
        text: the code.
        file: name of the file that the block is written to; empty for none.
        not_run: reason why the block is not run; empty for one that is run.
    """

    page: str
    line: int
    language: str
    text: str
    file: str
    not_run: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in {"sh", "python"} and not self.not_run

    @property
    def is_costly(self) -> bool:
        return self.is_run and bool(_COSTLY.search(self.text))


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in its order."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start(4)) + 1,
            found[4].strip(),
            found[5],
            found[2] if found[1] == "file" else "",
            found[2] if found[1] == "not run" else "",
        )
        for found in _BLOCK.finditer(text)
    ]


def commands(text: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments left out."""
    lines = (re.sub(r"(^|\s+)#\s.*$", "", line) for line in text.replace("\\\n", " ").splitlines())
    return [line.strip() for line in lines if line.strip()]
