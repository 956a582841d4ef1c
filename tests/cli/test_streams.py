"""Streams and folders that go away while a command uses them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfmot_ops.cli.app import _no_folder, main
from tfmot_ops.system.files import disk_failure

SAYS = "from tfmot_ops.cli.execute import say\nfor _ in range(20_000): say('x' * 50)\nraise RuntimeError('went on')"


def run(code: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = os.environ | environment
    return subprocess.run([sys.executable, *code], cwd=folder, env=env, capture_output=True, timeout=120, check=False)


def test_a_command_whose_reader_left_ends_as_by_sigpipe():
    with subprocess.Popen([sys.executable, "-c", SAYS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"tfmot-ops: " + b"x" * 50 + b"\n"
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 141


def test_a_text_is_printed_in_any_encoding(tmp_path):
    """After `main`, stdout escapes what the terminal's encoding cannot show, such as a file's name."""
    code = "import sys\nfrom tfmot_ops.cli.app import main\nsys.argv = ['tfmot-ops', '--version']\n"
    code += "try: main()\nexcept SystemExit: print(chr(0x2500))"
    done = run(["-c", code], tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.splitlines()[-1] == rb"\u2500"
    assert done.stderr == b""


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert _no_folder(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None
    gone.rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path("x").resolve()
    found = _no_folder(caught.value)
    assert found is not None
    assert found.exit_code == 4
    assert "another folder" in found.remedy


def test_an_argument_that_is_not_utf_8_is_refused_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tfmot-ops", "optimize", "--model", "mlp", "--output", os.fsdecode(b"o\xff")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert r"'o\xff'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_above_the_limit_of_the_process_is_a_disk_failure():
    assert disk_failure(OSError(errno.EFBIG, "File too large")).exit_code == 4
