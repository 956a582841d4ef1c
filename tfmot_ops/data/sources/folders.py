"""Folders with one sub-folder a class: what is in them, and which files are broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from tfmot_ops.errors import SpecError

#: Threads that check files, and files that are given to them at once: each waiting one takes about a kilobyte.
_THREADS = 4
_FILES_TOGETHER = 4096
#: Broken files that a message or a record names; the rest is counted.
_MOST_NAMED = 20
#: A file and its label.
Labelled = tuple[Path, int]


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        files: what they are called in messages, such as `images`.
        suffixes: their suffixes, in small letters, with the dot.
        required: what a file has to be, such as `a WAV file`.
    """

    files: str
    suffixes: tuple[str, ...]
    required: str

    def within(self, folder: Path) -> list[Path]:
        """The files of this kind in a folder, by name."""
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in self.suffixes and path.is_file())


@dataclass(frozen=True)
class Listing:
    """The files of a data set.

    Attributes:
        train: files to train on, by class and name.
        test: files of the test set; None without one.
        class_names: names of the sub-folders, by label.
    """

    train: list[Labelled]
    test: list[Labelled] | None
    class_names: tuple[str, ...]


def list_classes(folder: Path, kind: Kind) -> Listing:
    """The files in the sub-folders of a folder, one a class.

    A folder whose only sub-folders are `train` and `test` gives a training set and a test set, each with the same
    class folders. Folders whose names begin with a dot or two underscores are left out.
    """
    top = _sub_folders(folder)
    if [path.name for path in top] != ["test", "train"]:
        train, names = _labelled(folder, kind)
        return Listing(train, None, names)
    train, names = _labelled(folder / "train", kind)
    test, test_names = _labelled(folder / "test", kind)
    if names != test_names:
        raise SpecError(
            f"the test set in {folder / 'test'} has other classes than the training set",
            required=f"the sub-folders {', '.join(names)}",
            received=", ".join(test_names),
            remedy="give both the same sub-folders, one per class",
        )
    return Listing(train, test, names)


def _sub_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _labelled(folder: Path, kind: Kind) -> tuple[list[Labelled], tuple[str, ...]]:
    classes = _sub_folders(folder)
    files = [(path, label) for label, each in enumerate(classes) for path in kind.within(each)]
    full = {label for _, label in files}
    empty = [path.name for label, path in enumerate(classes) if label not in full]
    if not files or empty:
        named = f": {', '.join(empty[:_MOST_NAMED])}" if empty else ""
        raise SpecError(
            f"{folder} does not contain one sub-folder per class",
            required=f"one sub-folder per class, each with {kind.files} ({', '.join(kind.suffixes)})",
            received=f"{len(classes)} sub-folders, {len(empty)} of them without {kind.files}{named}",
            remedy="check the path and put each class's files into its own sub-folder",
        )
    return files, tuple(path.name for path in classes)


def without_broken(
    paths: Sequence[Path], problem: Callable[[Path], str | None], kind: Kind, skip: float
) -> tuple[set[Path], dict[str, JsonValue]]:
    """The broken ones of some files, and what the data set's record says of them.

    Args:
        paths: the files.
        problem: what is wrong with a file, None if nothing is; called from several threads.
        kind: kind of the files.
        skip: share of the files in [0, 1] that may be broken.

    Raises:
        SpecError: more files are broken; the first one is named.
    """
    found = [(path, text) for path, text in _looked_at(paths, problem) if text is not None]
    if len(found) > skip * len(paths):
        path, text = found[0]
        others = f"; {len(found)} of {len(paths)} {kind.files} are broken" if len(found) > 1 else ""
        raise SpecError(
            f"{path} cannot be decoded",
            required=f"{kind.required}, or a share of broken files of at most skip={skip:g}",
            received=text + others,
            remedy="repair or remove the file, or let ?skip= name the share that may be left out, such as skip=0.01",
        )
    if not found:
        return set(), {}
    names: list[JsonValue] = [str(path) for path, _ in found[:_MOST_NAMED]]
    return {path for path, _ in found}, {"skipped": len(found), "skipped_files": names}


def _looked_at(paths: Sequence[Path], problem: Callable[[Path], str | None]) -> Iterator[tuple[Path, str | None]]:
    """Each file with what is wrong with it, None if nothing is."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _FILES_TOGETHER):
            part = paths[start : start + _FILES_TOGETHER]
            yield from zip(part, pool.map(problem, part), strict=True)


def check_classes_left(files: Sequence[Labelled], listing: Listing) -> None:
    """Refuse a class of which every file was skipped."""
    left = {label for _, label in files}
    lost = [name for label, name in enumerate(listing.class_names) if label not in left]
    if lost:
        raise SpecError(
            f"every file of the class {lost[0]} is broken",
            required="a file per class that can be decoded",
            received=f"{len(lost)} classes without one",
            remedy="repair the files, or remove the class's folder",
        )
