"""TensorFlow's C++ lines on stderr: none that say nothing, and all that matter, also the last ones of a crash."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAD = "import os, sys\nfrom tfmot_ops.system.native_log import errors_only\n"
STAMP = "0000 00:00:1795955429.753124    5890"
LINES = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    f"I{STAMP} port.cc:153] oneDNN custom operations are on.",
    f"W{STAMP} something.cc:1] a warning",
    f"E{STAMP} cuda_platform.cc:52] failed call to cuInit: INTERNAL",
    f"E{STAMP} node_def_util.cc:682] NodeDef mentions attribute use_unbounded_threadpool",
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    "fully_quantize: 0, inference_type: 6",
]
KEPT = [
    f"E{STAMP} bfc_allocator.cc:1] out of memory",
    f"F{STAMP} check.cc:9] Check failed: x",
    "ERROR: tensor 3 is not there",
    "Traceback (most recent call last):",
]


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, check=False, env=env)


def writes(lines: list[str]) -> str:
    return f"os.write(2, {chr(10).join(lines).encode() + b'%c' % 10!r})\n"


def test_lines_that_say_nothing_are_dropped_and_others_pass():
    code = f"with errors_only():\n    {writes(LINES + KEPT)}    print('from Python', file=sys.stderr)\n"
    done = run(f"{code}os.write(2, b'after')")
    lines = done.stderr.splitlines()
    assert sorted(lines) == sorted([*KEPT, "from Python", "after"])
    assert lines[-1] == "after"
    assert done.returncode == 0


def test_the_last_words_of_a_crash_are_shown():
    done = run(f"with errors_only():\n    {writes(LINES + KEPT)}    os.abort()")
    assert done.stderr.splitlines() == KEPT
    assert done.returncode == -6


def test_who_asks_for_all_lines_gets_them():
    done = run(f"with errors_only():\n    {writes(LINES + KEPT)}", TF_CPP_MIN_LOG_LEVEL="0")
    assert done.stderr.splitlines() == LINES + KEPT


def test_an_exception_leaves_stderr_as_it_was():
    done = run(
        "try:\n    with errors_only():\n        raise KeyError('x')\nexcept KeyError:\n    os.write(2, b'whole\\n')\n"
        "print(sys.stderr.fileno())"
    )
    assert done.stderr == "whole\n"
    assert done.stdout == "2\n"


@pytest.mark.slow
def test_the_command_prints_its_own_lines_only(tmp_path):
    command = [sys.executable, "-m", "tfmot_ops.cli", "optimize", "--model", "resnet8", "--dataset", "digits"]
    command += ["--recipe", "wi8_ai8_ptq", "--epochs", "1", "--no-tracking", "--output", str(tmp_path)]
    env = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "TFLite: " in done.stdout
