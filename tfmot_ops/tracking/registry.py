"""Releases in MLflow's model registry: which version is the champion, its promotion, and the way back.

A version gets an alias when it is registered (`candidate`). Promotion gives it the alias `champion`, and the version
remembers which one it replaced, so that a rollback finds the way back.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException

from tfmot_ops.errors import StepFailedError
from tfmot_ops.tracking.client import quiet
from tfmot_ops.tracking.creating import create_registered_model, delete_registered_model

CHAMPION = "champion"
#: Tag of a version: the version that it replaced as champion.
_REPLACED_TAG = "tfmot_ops.replaced"
#: MLflow refuses two registered models of one name, in one transaction of its database. So a registered model with
#: this prefix is a lock that works between computers. It is there for the time of a promotion, about a second.
_LOCK = "tfmot_ops-promotion-of-"
_OWNER_TAG = "tfmot_ops.owner"
#: Seconds after which a lock is taken over, as its process was probably killed: longer than a step waits for MLflow.
_STALE_S = 600.0
_LONGEST_NAME = 256
#: What MLflow answers for a model, version or alias that is not there.
_UNKNOWN = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


@dataclass(frozen=True)
class Promotion:
    """A change of the champion.

    Attributes:
        name: of the registered model.
        version: the champion from now on.
        replaced: the champion before; None if there was none.
    """

    name: str
    version: str
    replaced: str | None


@dataclass(frozen=True)
class Champion:
    """The champion of a registered model.

    Attributes:
        version: its number.
        run_id: run of the step that registered it.
        metrics: with which it was registered.
    """

    version: str
    run_id: str
    metrics: dict[str, float]


@quiet()
def champion_of(client: mlflow.MlflowClient, name: str, alias: str = CHAMPION) -> Champion | None:
    """The champion of a registered model; None if there is none.

    Raises:
        MlflowException: MLflow cannot be asked.
    """
    version = version_of(client, name, alias)
    if version is None:
        return None
    run_id = str(client.get_model_version(name, version).run_id or "")
    return Champion(version, run_id, dict(client.get_run(run_id).data.metrics) if run_id else {})


def version_of(client: mlflow.MlflowClient, name: str, alias: str) -> str | None:
    """Number of the version with an alias; None if there is no such model or alias."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in _UNKNOWN:
            return None
        raise


@quiet()
def promote(
    client: mlflow.MlflowClient, name: str, version: str, *, to: str = CHAMPION, expected: str | None = ""
) -> Promotion:
    """Make a version the champion. Of two promotions at once, one wins and the other ends in an error.

    Args:
        client: connected to the tracking server.
        name: of the registered model.
        version: number or alias (`candidate`).
        to: the alias that the version gets.
        expected: number of the version that has the alias now, None for no version; the promotion fails if another
            version has it by now. Empty: whichever has it when this function is called.

    Returns:
        What was changed.

    Raises:
        StepFailedError: there is no such version, or another process promotes or has promoted a version meanwhile.
    """
    number = _number_of(client, name, version)
    before = version_of(client, name, to) if expected == "" else expected
    with _locked(client, name) as check_lock:
        present = version_of(client, name, to)
        if present != before:
            raise StepFailedError(
                f"{name}: version {number} was not promoted",
                required=f"the alias {to} at {_words(before)}, with which the file was compared",
                received=f"{_words(present)}, promoted by another process meanwhile",
                remedy="compare with the new champion: run the gate again",
            )
        if present != number:
            _remember(client, name, number, present)
            check_lock()
            client.set_registered_model_alias(name, to, number)
    return Promotion(name, number, present)


@quiet()
def rollback(client: mlflow.MlflowClient, name: str, *, alias: str = CHAMPION) -> Promotion:
    """Give the alias back to the version that the present champion replaced.

    Raises:
        StepFailedError: there is no champion, or it replaced none, or the version that it replaced was deleted.
    """
    with _locked(client, name) as check_lock:
        present = version_of(client, name, alias)
        tags = {} if present is None else client.get_model_version(name, present).tags
        before = tags.get(_REPLACED_TAG)
        if present is None or before is None:
            raise StepFailedError(
                f"{name}: nothing to roll back to",
                required=f"a version with the alias {alias} that replaced another one",
                received=_words(present),
                remedy="promote a version by its number",
            )
        before = _number_of(client, name, before)
        check_lock()
        client.set_registered_model_alias(name, alias, before)
        # Else two rollbacks in a row would lead back to the version that was left.
        _remember(client, name, present, None)
    return Promotion(name, before, present)


def _words(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"


def _remember(client: mlflow.MlflowClient, name: str, version: str, replaced: str | None) -> None:
    """Tag a version with the one that it replaces; None removes the tag."""
    if replaced is not None:
        client.set_model_version_tag(name, version, _REPLACED_TAG, replaced)
    elif _REPLACED_TAG in client.get_model_version(name, version).tags:
        client.delete_model_version_tag(name, version, _REPLACED_TAG)


def _number_of(client: mlflow.MlflowClient, name: str, wanted: str) -> str:
    """Number of the version with a number or an alias.

    Raises:
        StepFailedError: there is none.
    """
    number = wanted if wanted.isdecimal() else version_of(client, name, wanted)
    if number is not None:
        try:
            return str(client.get_model_version(name, number).version)
        except MlflowException as error:
            if error.error_code not in _UNKNOWN:
                raise
    known = [version.version for version in _versions(client, name)]
    raise StepFailedError(
        f"{name}: no version {wanted}",
        required="the number of a version, or an alias that a version has",
        received=f"{wanted}; there are the versions {', '.join(map(str, known))}" if known else "no such model",
        remedy="`mlflow ui` shows the registered models",
    )


def _versions(client: mlflow.MlflowClient, name: str) -> list[mlflow.entities.model_registry.ModelVersion]:
    # Not by a filter, as a name may hold the quotes of one.
    return [version for version in client.search_model_versions() if version.name == name]


@contextlib.contextmanager
def _locked(client: mlflow.MlflowClient, name: str) -> Iterator[Callable[[], None]]:
    """Let one process at a time change the aliases of a model.

    Yields:
        A function that fails if another process has taken the lock over.

    Raises:
        StepFailedError: another process has the lock.
    """
    lock, owner = f"{_LOCK}{name}"[:_LONGEST_NAME], uuid.uuid4().hex
    _take(client, name, lock, owner)

    def check() -> None:
        if _owner_of(client, lock) != owner:
            raise _busy(name, lock)

    try:
        check()
        yield check
    finally:
        if _owner_of(client, lock) == owner:
            delete_registered_model(client, lock, {_OWNER_TAG: owner})


def _take(client: mlflow.MlflowClient, name: str, lock: str, owner: str) -> None:
    try:
        create_registered_model(client, lock, {_OWNER_TAG: owner})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        _remove_if_stale(client, name, lock)
        create_registered_model(client, lock, {_OWNER_TAG: owner})


def _remove_if_stale(client: mlflow.MlflowClient, name: str, lock: str) -> None:
    """Remove a lock whose process was killed with it, a while ago."""
    found = client.get_registered_model(lock)
    if time.time() - found.creation_timestamp / 1000.0 < _STALE_S:
        raise _busy(name, lock)
    delete_registered_model(client, lock, found.tags)


def _owner_of(client: mlflow.MlflowClient, lock: str) -> str | None:
    try:
        return str(client.get_registered_model(lock).tags.get(_OWNER_TAG))
    except MlflowException as error:
        if error.error_code not in _UNKNOWN:
            raise
        return None


def _busy(name: str, lock: str) -> StepFailedError:
    return StepFailedError(
        f"{name}: another process promotes a version",
        required="one promotion at a time",
        received=f"the lock {lock} in the model registry",
        remedy=f"look which version has the alias now, and try again; a lock older than {_STALE_S:.0f} s is taken over",
    )
