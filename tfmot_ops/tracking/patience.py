"""Waits for an MLflow server that does not answer: for a limited time in total, and with progress messages.

MLflow's client retries each single request for minutes, silently, and a step makes dozens of requests. Here the time
is limited for an outage as a whole: it begins with the first request that fails and ends with the next one that
succeeds. Once an outage has lasted too long, later requests of the same process are tried only once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import mlflow
import requests
from mlflow.exceptions import MlflowException, RestException

from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import environment
from tfmot_ops.system.uri_secrets import hide

_Result = TypeVar("_Result")

#: MLflow's own settings of a request; what the user has set wins.
_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
# With one retry, MLflow raises another exception for a server that fails than for one that refuses the request.
_TRIES = 2
#: Longest time in seconds that the server may take for one answer, and for one that waits for its artifact store.
_ANSWER_S, ARTIFACT_S = 20.0, 60.0
#: Time in seconds for an answer where waiting for it is not worth while.
_BRIEF_S = 5.0
_PAUSE_S = 2.0
#: Seconds after which a message says what is waited for.
_TELL_AFTER_S = 5.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})


class _Outage:
    """The outage of this process's MLflow server.

    Attributes:
        since: time of the monotonic clock at which the first request failed; None while the server answers.
        is_given_up: whether the time to wait has passed.
        brief: whether requests are tried once at present, see `briefly`.
        tell: called with each message.
    """

    since: float | None = None
    is_given_up = False
    brief = False
    tell: Callable[[str], None] = staticmethod(lambda _: None)


_outage = _Outage()


def tell_waits_to(say: Callable[[str], None]) -> None:
    """Have this process's messages on waiting for MLflow go to `say`."""
    _outage.tell = say


@contextlib.contextmanager
def briefly() -> Iterator[None]:
    """Try each request of the block once, as the block can be repeated later."""
    _outage.brief = True
    try:
        yield
    finally:
        _outage.brief = False


def patiently(call: Callable[[], _Result], what: str, uri: str | None, answer_s: float = _ANSWER_S) -> _Result:
    """Call a function that makes requests to an MLflow server, and call it again while the server does not answer.

    Args:
        call: the function; it must be harmless to call it again.
        what: what it does, for messages.
        uri: MLflow tracking URI; any that is not of a server calls the function once.
        answer_s: longest time in seconds that the server may take for one answer.

    Raises:
        StepFailedError: the server did not answer within TFMOT_OPS_TRACKING_WAIT seconds.
        MlflowException: the server refused the request.
    """
    if uri is None or not uri.startswith(("http://", "https://")):
        return call()
    first_failure: float | None = None
    while True:
        began = time.monotonic()
        try:
            with _limits(answer_s), _told(f"{what} at {hide(uri)}"):
                result = call()
        except (MlflowException, requests.RequestException) as error:
            if not may_pass(error):
                raise
            # Not the outage alone: a request within `call` that succeeds ends it, while `call` fails again and again.
            first_failure = began if first_failure is None else first_failure
            _wait(error, first_failure, what, uri)
        else:
            _outage.since, _outage.is_given_up = None, False
            return result


def may_pass(error: BaseException) -> bool:
    """Whether an error of a request says that the server is away or failing, rather than that it refused."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RestException):
            return cause.get_http_status_code() in _PASSING
        if isinstance(cause, requests.RequestException):
            return cause.response is None or cause.response.status_code in _PASSING
        cause = cause.__cause__ or cause.__context__
    return False


class PatientClient(mlflow.MlflowClient):
    """An MLflow client whose every call waits for the server as `patiently` does."""

    def __getattribute__(self, name: str) -> Any:
        """The attribute; a public method is wrapped."""
        value = super().__getattribute__(name)
        if name.startswith("_") or not callable(value):
            return value
        answer_s = ARTIFACT_S if "artifact" in name else _ANSWER_S
        return functools.partial(_patient_method, value, name, self.tracking_uri, answer_s)


def _patient_method(method: Callable[..., Any], name: str, uri: str, answer_s: float, *given: Any, **named: Any) -> Any:
    return patiently(lambda: method(*given, **named), name.replace("_", " "), uri, answer_s)


def _wait(error: Exception, began: float, what: str, uri: str) -> None:
    """Wait before the next try, or raise the error if there is to be none."""
    total = environment.tracking_wait_s()
    since = began if _outage.since is None else min(began, _outage.since)
    if not _outage.brief:
        _outage.since = since
    left = 0.0 if _outage.brief else since + total - time.monotonic()
    if left <= 0.0:
        _outage.is_given_up = _outage.is_given_up or not _outage.brief
        raise StepFailedError(
            f"tracking: {hide(uri)} does not answer ({what})",
            required=f"an MLflow server that answers within {total:g} s, the value of {environment.TRACKING_WAIT.name}",
            received=hide(f"{type(error).__name__}: {error}", uri),
            remedy="when MLflow is back, start the same step again: it goes on after the last finished epoch",
        ) from error
    if not _outage.is_given_up:
        _outage.tell(f"MLflow at {hide(uri)} does not answer ({what}); tries again for {left:.0f} s")
    time.sleep(min(_PAUSE_S, left))


@contextlib.contextmanager
def _limits(answer_s: float) -> Iterator[None]:
    """Have MLflow's client give up a single request in time."""
    left = environment.tracking_wait_s()
    if _outage.since is not None:
        left += _outage.since - time.monotonic()
    answer_s = min(answer_s, left / _TRIES)
    if _outage.brief or _outage.is_given_up:
        answer_s = min(answer_s, _BRIEF_S)
    wanted = {_TIMEOUT: str(max(1, round(answer_s))), _RETRIES: str(_TRIES - 1)}
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what is waited for when the block takes long."""
    timer = threading.Timer(_TELL_AFTER_S, _outage.tell, [f"waiting for MLflow: {what}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
