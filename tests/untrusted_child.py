"""Loads model files in a process of its own: `untrusted_child.py <request.json>`.

The request names good files, which are loaded first so that nothing is left to import, the files in question, and a
folder that no file may change. For each file one line of JSON is written: how it ended, and what the process was seen
to do meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_ops import core
from tfmot_ops.errors import ArtifactError

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = ("subprocess.", "shutil.", "ctypes.dlopen", "socket.", "pickle.", "pty.", "webbrowser.", "os.")
# Looking is no harm.
_LOOKS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr"}


class Watch:
    """What happens in this process, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            told = isinstance(values[2], int) and values[2] & _WRITING
        elif event == "import":
            told = values[0] not in sys.modules and not values[0].startswith("encodings.")
        else:
            told = event.startswith(_EVENTS) and event not in _LOOKS
        if told:
            self.seen.append(f"{event} {values[0] if values else ''}")


def try_to_load(path: str) -> dict[str, Any]:
    """Loads a file, and runs the model if there is one."""
    try:
        model = core.load_model(path)
    except ArtifactError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - the test tells of it
        return {"error": f"NOT FORESEEN {type(error).__name__}", "message": str(error)}
    try:
        model([np.zeros([1, *tensor.shape[1:]], np.float32) for tensor in model.inputs])
    except Exception as error:  # noqa: BLE001 - a mutated model need not run
        return {"error": None, "message": f"does not run: {error}"}
    return {"error": None, "message": ""}


def _contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    watched, watch = Path(request["watched"]), Watch()
    for path in request["good"]:
        core.load_model(path)
    for path in request["files"]:
        before, watch.seen, watch.on = _contents(watched), [], True
        answer = try_to_load(path)
        watch.on = False
        if _contents(watched) != before:
            watch.seen.append("the folder changed")
        sys.stdout.write(json.dumps({"path": path, "seen": watch.seen, **answer}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
