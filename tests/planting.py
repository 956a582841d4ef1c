"""Regressions of tf_keras, planted from outside: Python imports a file as it starts, and that changes a module."""

from __future__ import annotations

from pathlib import Path

_SITE = """
import importlib.abc, importlib.machinery, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {name!r}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            exec({code!r}, globals() | dict(module=module))

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def plant(folder: Path, name: str, code: str) -> None:
    """Have every Python with this folder on its path run `code`, which knows `module`, after it has loaded a module."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE.format(name=name, code=code), encoding="utf-8")
