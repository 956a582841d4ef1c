"""Releases in MLflow's model registry: which version is the champion, its promotion, and the way back.

A version gets an alias when it is registered (`candidate`). Promotion gives it the alias `champion`, and the version
remembers which one it replaced, so that a rollback finds the way back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException

from tfmot_ops.errors import StepFailedError
from tfmot_ops.tracking.client import quiet, registry_of

CHAMPION = "champion"
#: Tag of a version: the version that it replaced as champion.
_REPLACED_TAG = "tfmot_ops.replaced"
#: MLflow refuses two registered models of one name, in one transaction of its database. So a registered model with
#: this prefix is a lock that works between computers. It is there for the time of a promotion, about a second.
_LOCK = "tfmot_ops-promotion-of-"
#: Seconds after which the lock of a process that was killed is taken over.
_STALE_S = 60.0
_LONGEST_NAME = 256


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


@quiet()
def champion_of(uri: str, name: str, alias: str = CHAMPION) -> tuple[str, dict[str, float]] | None:
    """(number of the champion's version, the metrics with which it was registered); None if there is no champion.

    Args:
        uri: of the tracking server.
        name: of the registered model.
        alias: that marks the champion.

    Raises:
        StepFailedError: MLflow cannot be used.
    """
    client = registry_of(uri)
    version = version_of(client, name, alias)
    if version is None:
        return None
    run_id = client.get_model_version(name, version).run_id
    return version, dict(client.get_run(run_id).data.metrics) if run_id else {}


def version_of(client: mlflow.MlflowClient, name: str, alias: str) -> str | None:
    """Number of the version with an alias; None if there is no such model or alias."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        # MLflow answers INVALID_PARAMETER_VALUE for an alias that no version has.
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
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
    number = version if version.isdigit() else version_of(client, name, version)
    _require_version(client, name, version, number)
    before = version_of(client, name, to) if expected == "" else expected
    with _locked(client, name):
        present = version_of(client, name, to)
        if present != before:
            raise StepFailedError(
                f"{name}: version {number} was not promoted",
                required=f"the alias {to} at {_words(before)}, with which the file was compared",
                received=f"{_words(present)}, promoted by another process meanwhile",
                remedy="compare with the new champion: run the gate again",
            )
        if present != number:
            if present is None:
                client.delete_model_version_tag(name, str(number), _REPLACED_TAG)
            else:
                client.set_model_version_tag(name, str(number), _REPLACED_TAG, present)
            client.set_registered_model_alias(name, to, str(number))
    return Promotion(name, str(number), present)


@quiet()
def rollback(client: mlflow.MlflowClient, name: str, *, alias: str = CHAMPION) -> Promotion:
    """Give the alias back to the version that the present champion replaced.

    Raises:
        StepFailedError: there is no champion, or it replaced none, or the version that it replaced was deleted.
    """
    with _locked(client, name):
        present = version_of(client, name, alias)
        tags = {} if present is None else client.get_model_version(name, present).tags
        before = tags.get(_REPLACED_TAG)
        if before is None:
            raise StepFailedError(
                f"{name}: nothing to roll back to",
                required=f"a version with the alias {alias} that replaced another one",
                received=_words(present),
                remedy="promote a version by its number",
            )
        _require_version(client, name, before, before)
        client.set_registered_model_alias(name, alias, before)
    return Promotion(name, before, present)


def _words(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"


def _require_version(client: mlflow.MlflowClient, name: str, wanted: str, number: str | None) -> None:
    if number is not None:
        try:
            client.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            number = None
    if number is None:
        known = [version.version for version in _versions(client, name)]
        raise StepFailedError(
            f"{name}: no version {wanted}",
            required="the number of a version, or an alias that a version has",
            received=f"{wanted}; there are the versions {', '.join(map(str, known))}" if known else "no such model",
            remedy="`mlflow ui` shows the registered models",
        )


def _versions(client: mlflow.MlflowClient, name: str) -> list[mlflow.entities.model_registry.ModelVersion]:
    try:
        client.get_registered_model(name)
    except MlflowException:
        return []
    return [v for v in client.search_model_versions() if v.name == name]


@contextlib.contextmanager
def _locked(client: mlflow.MlflowClient, name: str) -> Iterator[None]:
    """Let one process at a time change the aliases of a model.

    Raises:
        StepFailedError: another process has the lock.
    """
    lock = f"{_LOCK}{name}"[:_LONGEST_NAME]
    try:
        client.create_registered_model(lock)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or not _take_over(client, lock):
            raise StepFailedError(
                f"{name}: another process promotes a version",
                required="one promotion at a time",
                received=f"the lock {lock} in the model registry",
                remedy=f"look which version has the alias now, and try again; a lock is left after {_STALE_S:.0f} s",
            ) from error
    try:
        yield
    finally:
        client.delete_registered_model(lock)


def _take_over(client: mlflow.MlflowClient, lock: str) -> bool:
    """Whether this process now has a lock that another one held: one that was killed with it, a while ago."""
    try:
        made_ms = client.get_registered_model(lock).creation_timestamp
        if time.time() - made_ms / 1000.0 < _STALE_S:
            return False
        client.delete_registered_model(lock)
        client.create_registered_model(lock)
    except MlflowException:
        return False
    return True
