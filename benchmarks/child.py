"""One measurement in a process of its own: `python -m benchmarks.child <question> <JSON of its arguments>`."""

from __future__ import annotations

import importlib
import json
import sys


def main() -> None:
    _, name, arguments = sys.argv
    question = importlib.import_module(f"benchmarks.{name}").QUESTION
    print(json.dumps(question.measure(**json.loads(arguments))))


if __name__ == "__main__":
    main()
