"""Files under their final name are whole, whatever ended their writer; nothing of a dead writer stays."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import files, processes, scratch

pytestmark = pytest.mark.slow

WRITER = """
import sys, time
from pathlib import Path
from tfmot_ops.system import files
with files.whole(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""
SCRATCH = """
import time
from tfmot_ops.system.scratch import temporary_files_in_scratch
with temporary_files_in_scratch() as folder:
    import tempfile
    tempfile.mkstemp(prefix="__autograph_generated_file")
    print(folder, flush=True)
    time.sleep(600)
"""
LOCK = """
import sys, time
from pathlib import Path
from tfmot_ops.system import files
with files.lock(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def child() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def _start(child: list[subprocess.Popen[str]], script: str, *arguments: object, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    child.append(process)
    assert process.stdout is not None
    return process.pid, process.stdout.readline().strip()


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_writer_leaves_the_file_before_and_the_next_one_sweeps_its_rest(child, tmp_path):
    path = tmp_path / "a[1]*.tflite"  # characters that a pattern takes for its own
    path.write_text("before")
    _start(child, WRITER, path)
    assert path.read_text() == "before"
    files.write(path, "while the other writes")
    assert len(list(tmp_path.iterdir())) == 2, "the file of a living writer was removed"
    _kill(child[0])
    assert path.read_text() == "while the other writes"
    files.write(path, "after")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "after"


def test_a_failed_writer_leaves_the_file_before_and_nothing_else(tmp_path):
    path = tmp_path / "model.h5"
    files.write(path, b"before")
    with pytest.raises(ValueError, match="in the middle"), files.whole(path) as part:  # noqa: PT012
        part.write_bytes(b"half")
        raise ValueError("in the middle")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "saved_model"
    for text in ("one", "two"):
        with files.whole(path) as part:
            part.mkdir()
            (part / text).write_text(text)
    assert [each.name for each in path.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_of_and_leaves_nothing_half_written(small_disk, tmp_path):
    files.write(small_disk / "a", b"before")
    with pytest.raises(OSError, match="No space") as told:
        files.write(small_disk / "a", bytes(300_000))
    assert told.value.errno == errno.ENOSPC
    assert (small_disk / "a").read_bytes() == b"before"
    source = tmp_path / "source"
    source.write_bytes(bytes(300_000))
    with pytest.raises(OSError, match="No space"):
        files.copy(source, small_disk / "b")
    assert [each.name for each in small_disk.iterdir()] == ["a"]


def test_an_error_without_a_number_on_a_full_disk_is_one_of_the_disk(small_disk):
    with pytest.raises(OSError, match="No space"), files.whole(small_disk / "a") as part:  # noqa: PT012
        try:
            part.write_bytes(bytes(300_000))
        except OSError:
            raise RuntimeError("so reports a library") from None
    assert list(small_disk.iterdir()) == []


def test_folders_that_cannot_be_written_are_refused(small_disk, tmp_path):
    (tmp_path / "file").touch()
    (small_disk / "fill").write_bytes(bytes(250_000))
    for folder in (tmp_path / "file" / "below", small_disk / "out"):
        with pytest.raises(StepFailedError, match="cannot be written") as refusal:
            files.check_writable(folder)
        assert refusal.value.exit_code == 4
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StepFailedError, match="Read-only"):
        files.check_writable(small_disk)
    files.check_writable(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_a_disk_failure_is_recognised_by_its_cause():
    def raised(cause: Exception) -> Exception:
        outer = RuntimeError("wrapped")
        outer.__cause__ = cause
        return outer

    full = files.disk_failure(raised(OSError(errno.ENOSPC, "No space left on device")))
    assert full is not None
    assert "No space left on device" in full.received
    assert files.disk_failure(raised(ValueError("a bug"))) is None
    assert files.disk_failure(raised(FileNotFoundError(errno.ENOENT, "missing"))) is None


def test_temporary_files_of_the_dead_are_swept_and_those_of_the_living_stay(child, tmp_path):
    folders = [Path(_start(child, SCRATCH, TMPDIR=str(tmp_path))[1]) for _ in range(2)]
    theirs = tmp_path / "tfmot-ops-older1"  # without a lock, so perhaps of a living process
    theirs.mkdir()
    assert all(list(folder.glob("__autograph_generated_file*")) for folder in folders)
    _kill(child[0])
    pid, third = _start(child, SCRATCH, TMPDIR=str(tmp_path))
    assert not folders[0].exists()
    assert folders[1].exists()
    assert theirs.exists()
    os.kill(pid, signal.SIGINT)
    child[2].wait()
    assert not Path(third).exists()


def test_a_scratch_folder_goes_with_its_user(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = scratch.ScratchFolder()
    (folder.path / "file").touch()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.cleanup()
    folder.cleanup()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_its_holder(child, tmp_path):
    path = tmp_path / "lock"
    assert _start(child, LOCK, path)[1] == "True"
    with files.lock(path) as held:
        assert not held
    _kill(child[0])
    with files.lock(path) as held:
        assert held
        assert _start(child, LOCK, path)[1] == "False"
    assert not path.exists()


def test_a_process_is_known_dead_only_where_that_can_be_known(child, tmp_path):
    here = processes.current()
    assert processes.Owner.parse(str(here)) == here
    assert processes.Owner.parse("something else") is None
    assert not here.is_dead()
    assert processes.Owner(here.host, here.machine, here.boot, here.pids, here.pid, here.start - 1).is_dead()
    elsewhere = processes.Owner("other", "f" * 32, "another boot", here.pids, here.pid, here.start)
    assert not elsewhere.is_dead()
    pid, _ = _start(child, LOCK, tmp_path / "lock")
    start = processes._start_time(pid)
    assert start is not None
    other = processes.Owner(here.host, here.machine, here.boot, here.pids, pid, start)
    assert not other.is_dead()
    child[0].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not other.is_dead():  # also while nobody has asked for its exit code
        assert time.monotonic() < deadline
        time.sleep(0.01)
