"""Artifacts as files: write an artifact for later steps, fetch it, and verify its sha256.

A store is any fsspec folder (a path, `file://`, `s3://`, ...). The store of a tracking run lives in
`tracking`, which builds on the functions here.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from pathlib import Path
from typing import Protocol

import fsspec

from tfmot_ops.contract import Artifact, ArtifactFormat
from tfmot_ops.errors import ArtifactError
from tfmot_ops.system import files

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
#: What fsspec's file systems raise where they cannot read or write: ImportError where the package of the scheme is not
#: installed, NotImplementedError where a scheme only reads, TypeError and IndexError for URIs that say too little.
UNUSABLE = (OSError, ValueError, ImportError, NotImplementedError, TypeError, LookupError)
#: File name ending of each format; the next reader (Keras, the converter, a browser) goes by it.
SUFFIXES = {
    ArtifactFormat.KERAS_H5: ".h5",
    ArtifactFormat.TFLITE: ".tflite",
    ArtifactFormat.JSON: ".json",
    ArtifactFormat.HTML: ".html",
    ArtifactFormat.CSV: ".csv",
    ArtifactFormat.PNG: ".png",
}

# An object store shows an object only once it is complete, so a temporary name is not needed there; renaming would
# upload the object again.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"})


class Store(Protocol):
    """Where a step's outputs go and its inputs come from."""

    def put(self, path: Path, name: str, artifact_format: ArtifactFormat) -> Artifact:
        """Copy the file at `path` into the store under `name`.

        Args:
            path: a local file.
            name: output name, without a suffix (`model`, `tflite`).
            artifact_format: what is inside.

        Returns:
            The artifact with its URI, sha256 and size in bytes.

        Raises:
            ArtifactError: the store cannot be written.
        """

    def fetch(self, artifact: Artifact, folder: Path) -> Path:
        """Copy an artifact into the local `folder`.

        Returns:
            Path of the verified copy.

        Raises:
            ArtifactError: it is missing, unreadable, or not the one that was recorded.
        """


def _located(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, and the path in it. A path of this machine may have any name, such as `a::b` or `~a`.

    Raises:
        ValueError: the URI has a scheme but no place, or leads through several file systems.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in fsspec.available_protocols():
        if rest.startswith("//") and _SCHEME.fullmatch(scheme):
            raise ValueError(f"no file system has the scheme {scheme}")
        return fsspec.filesystem("file"), str(Path(uri).absolute())
    if scheme in {"file", "local"}:
        return fsspec.filesystem("file"), str(Path(rest.removeprefix("//")).absolute())
    if "::" in uri or not rest.startswith("//") or rest == "//":
        raise ValueError(f"the scheme {scheme} without one place after it, as in {scheme}://<place>")
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem, path


def describe(path: Path, uri: str, artifact_format: ArtifactFormat) -> Artifact:
    """The artifact of the local file at `path`, to be read from `uri` later."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(uri=uri, sha256=digest, size_bytes=path.stat().st_size, format=artifact_format)


def verify(path: Path, artifact: Artifact) -> Path:
    """Compare the local copy of an artifact with what was recorded when it was written.

    Returns:
        `path`, when size and sha256 agree.

    Raises:
        ArtifactError: size or sha256 differ.
    """
    found = describe(path, artifact.uri, artifact.format)
    if found != artifact:
        raise ArtifactError(
            f"{artifact.uri} is not the file that was recorded",
            required=f"{artifact.size_bytes} bytes with sha256 {artifact.sha256}",
            received=f"{found.size_bytes} bytes with sha256 {found.sha256}",
            remedy="run the step that writes it again; something else wrote or cut short this file",
        )
    return path


def fetch(artifact: Artifact, folder: Path) -> Path:
    """Copy an artifact from any fsspec URI into the local `folder`, and verify it.

    Args:
        artifact: what to fetch.
        folder: local folder; created when missing.

    Returns:
        Path of the verified copy.

    Raises:
        ArtifactError: it is missing, unreadable, or not the one that was recorded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = artifact.uri.rstrip("/").rsplit("/", 1)[-1]
    if name in {"", ".", ".."}:
        raise unreadable(artifact, ValueError("the URI ends in no file name"))
    target = folder / name
    try:
        filesystem, source = _located(artifact.uri)
        filesystem.get_file(source, str(target))
        files.require_regular(target)
    except UNUSABLE as error:
        raise unreadable(artifact, error) from error
    return verify(target, artifact)


def unreadable(artifact: Artifact, error: Exception) -> ArtifactError:
    """The error for an artifact that cannot be copied here."""
    return ArtifactError(
        f"cannot read {artifact.uri}",
        required="a file that this machine can read",
        received=f"{type(error).__name__}: {error}",
        remedy="run the step that writes it again, or give this step access to the store",
    )


def put(path: Path, output_uri: str, name: str, artifact_format: ArtifactFormat) -> Artifact:
    """Copy a local file to the folder `output_uri`, where it appears complete or not at all.

    Args:
        path: a local file.
        output_uri: folder as a path or any fsspec URI; created when missing.
        name: output name, without a suffix.
        artifact_format: decides the suffix.

    Returns:
        The artifact with its URI, sha256 and size in bytes.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    file_name = name + SUFFIXES[artifact_format]
    try:
        filesystem, folder = _located(output_uri)
        target = f"{folder.rstrip('/')}/{file_name}"
        _upload(path, filesystem, target, f".{uuid.uuid4().hex}")
    except UNUSABLE as error:
        raise ArtifactError(
            f"cannot write {file_name} to {output_uri}",
            required="a folder that this machine can write",
            received=f"{type(error).__name__}: {error}",
            remedy="give the step a writable output_uri",
        ) from error
    return describe(path, filesystem.unstrip_protocol(target), artifact_format)


def check_output(output_uri: str) -> None:
    """Refuse an output folder of this machine that cannot be written, before the work whose results belong there.

    Raises:
        StepFailedError: no file can be written there. Other places are not tried: that takes a connection.
    """
    with contextlib.suppress(*UNUSABLE):  # `put` says what is wrong
        filesystem, folder = _located(output_uri)
        if "file" in _protocols(filesystem):
            files.check_writable(Path(folder))


def _upload(path: Path, filesystem: fsspec.AbstractFileSystem, target: str, ending: str) -> None:
    """Copy a local file to `target`, where it appears complete or not at all; `ending` is of its temporary name."""
    folder, _, name = target.rpartition("/")
    if "file" in _protocols(filesystem):
        files.copy(path, Path(target))
        return
    filesystem.makedirs(folder, exist_ok=True)
    if _OBJECT_STORES.isdisjoint(_protocols(filesystem)):
        temporary = f"{folder}/.{name.lstrip('.')}{ending}"
        try:
            filesystem.put_file(str(path), temporary)
            filesystem.mv(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                filesystem.rm_file(temporary)
            raise
    else:
        filesystem.put_file(str(path), target)


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


class FsspecStore:
    """A folder on any file system that fsspec knows.

    Args:
        output_uri: the folder, as a path or a URI.
    """

    def __init__(self, output_uri: str) -> None:
        self.output_uri = output_uri

    def put(self, path: Path, name: str, artifact_format: ArtifactFormat) -> Artifact:
        """See `Store.put`."""
        return put(path, self.output_uri, name, artifact_format)

    def fetch(self, artifact: Artifact, folder: Path) -> Path:
        """See `Store.fetch`."""
        return fetch(artifact, folder)


class KeptFile:
    """A file that one attempt at a step keeps for the next; unlike an artifact it changes, and is deleted at the end.

    Every method raises OSError, ValueError (no such protocol) or ImportError (its package is not installed) when the
    file system cannot do it.

    Args:
        uri: the file, as a path or any fsspec URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def fetch(self, path: Path) -> bool:
        """Copy the kept file to the local `path`; False if there is none."""
        filesystem, source = _located(self.uri)
        if not filesystem.exists(source):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(source, str(path))
        return True

    def keep(self, path: Path) -> None:
        """Replace the kept file by the local file at `path`, atomically."""
        filesystem, target = _located(self.uri)
        # The same temporary name each time, so that killed attempts do not leave several truncated files.
        _upload(path, filesystem, target, ".part")

    def remove(self) -> None:
        """Delete it if it is there."""
        filesystem, target = _located(self.uri)
        if "file" in _protocols(filesystem):
            files.remove_leftovers(Path(target))
        if filesystem.exists(target):
            filesystem.rm_file(target)
