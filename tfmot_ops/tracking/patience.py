"""Waits for an MLflow server that does not answer: for a limited time in total, and with progress messages.

MLflow's client retries each single request for minutes, silently, and a step makes dozens of requests. Here the time
is limited for an outage as a whole: it begins with the first request that fails and ends with the next one that the
server answers, be it with a refusal. Once an outage has lasted too long, later requests of the same process are tried
only once.

A request whose answer is lost may have been carried out. So only requests that may be repeated are simply repeated. One
that creates something is sent again only after a look whether the first one succeeded, see `once` and `creating`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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
#: Methods of an MLflow client that leave the same behind however often they are called: what they write has the name,
#: the time and the value that the caller gives.
_REPEATABLE = ("get_", "search_", "list_", "download_", "log_", "set_", "update_", "delete_")
#: Exceptions from that. `log_metric` takes the time of the call; `log_table` appends; a registered model is deleted by
#: its name, which another process may have given to a new one in the meantime.
_NOT_REPEATABLE = frozenset({"log_metric", "log_table", "delete_registered_model"})
_GONE, _CHECKED_BY_THE_CLIENT = "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"
#: HTTP statuses from which on a request is refused, and from which on the server has failed.
_REFUSED, _FAILED = 400, 500


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
    return _patiently(_Request(call, call, what, answer_s), uri)


def once(
    call: Callable[[], _Result],
    look: Callable[[], _Result | None] | None,
    what: str,
    uri: str | None,
    answer_s: float = _ANSWER_S,
) -> _Result:
    """Call a function whose request must not be carried out twice, as it creates something.

    After a request without an answer, `look` is called, and `call` again only if the first request did nothing.

    Args:
        call: the function; each of its requests is sent once.
        look: returns what the first request made, in the form of the result of `call`; None if it made nothing. Without
            a function here, `call` is not called again.
        what: as for `patiently`.
        uri: as for `patiently`.
        answer_s: as for `patiently`.

    Raises:
        StepFailedError, MlflowException: as for `patiently`.
    """

    def again() -> _Result:
        found = look() if look is not None else None
        return call() if found is None else found

    return _patiently(_Request(call, again, what, answer_s, is_sent_once=True, is_repeated=look is not None), uri)


@dataclass(frozen=True)
class _Request(Generic[_Result]):
    """What is asked of MLflow.

    Attributes:
        first: the call.
        again: the call after one that was not answered.
        what: for messages.
        answer_s: longest time in seconds for one answer.
        is_sent_once: whether MLflow's client must not send a request again by itself.
        is_repeated: whether there may be a call after one that was not answered.
    """

    first: Callable[[], _Result]
    again: Callable[[], _Result]
    what: str
    answer_s: float
    is_sent_once: bool = False
    is_repeated: bool = True


def _patiently(request: _Request[_Result], uri: str | None) -> _Result:
    if uri is None or not uri.startswith(("http://", "https://")):
        return request.first()
    first_failure: float | None = None
    while True:
        began = time.monotonic()
        call = request.first if first_failure is None else request.again
        try:
            with _limits(request), _told(f"{request.what} at {hide(uri)}"):
                result = call()
        except (MlflowException, requests.RequestException) as error:
            if not may_pass(error):
                if _is_answer(error):
                    _end_outage()
                raise
            # Not the outage alone: a request within `call` that succeeds ends it, while `call` fails again and again.
            first_failure = began if first_failure is None else first_failure
            _wait(error, first_failure, request, uri)
        else:
            _end_outage()
            return result


def _end_outage() -> None:
    _outage.since, _outage.is_given_up = None, False


def may_pass(error: BaseException) -> bool:
    """Whether an error of a request says that the server is away or failing, rather than that it refused."""
    found = _http_error(error)
    return found is not None and (found.status is None or found.status in _PASSING)


def _is_answer(error: MlflowException | requests.RequestException) -> bool:
    """Whether the server has answered; other refusals come from MLflow's client, which checks arguments by itself."""
    found = _http_error(error)
    if found is not None:
        return found.status is not None
    # An answer that is no JSON, as a proxy gives it: MLflow makes an error of it that keeps the status as its code.
    if not isinstance(error, MlflowException) or error.error_code == _CHECKED_BY_THE_CLIENT:
        return False
    return bool(_REFUSED <= error.get_http_status_code() < _FAILED)


@dataclass(frozen=True)
class _HttpError:
    """What a request came to: the status of the answer, None if there was no answer."""

    status: int | None


def _http_error(error: BaseException) -> _HttpError | None:
    """The failed request behind an error; None if it was no request that failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RestException):
            return _HttpError(int(cause.get_http_status_code()))
        if isinstance(cause, requests.RequestException):
            return _HttpError(None if cause.response is None else cause.response.status_code)
        cause = cause.__cause__ or cause.__context__
    return None


class PatientClient(mlflow.MlflowClient):
    """An MLflow client whose calls wait for the server as `patiently` does.

    A call that may not be repeated, such as `create_run`, is tried once: `creating` has functions that look first.
    """

    def __getattribute__(self, name: str) -> Any:
        """The attribute; a public method is wrapped."""
        value = super().__getattribute__(name)
        if name.startswith("_") or not callable(value):
            return value
        answer_s = ARTIFACT_S if "artifact" in name else _ANSWER_S
        return functools.partial(_patient_method, value, name, self.tracking_uri, answer_s)


def _patient_method(method: Callable[..., Any], name: str, uri: str, answer_s: float, *given: Any, **named: Any) -> Any:
    def call() -> Any:
        return method(*given, **named)

    def delete_again() -> Any:
        try:
            return call()
        except MlflowException as error:
            if error.error_code != _GONE:
                raise
            return None  # the first request succeeded

    words = name.replace("_", " ")
    if not name.startswith(_REPEATABLE) or name in _NOT_REPEATABLE:
        return once(call, None, words, uri, answer_s)
    deletes = name.startswith("delete_")
    again = delete_again if deletes else call
    return _patiently(_Request(call, again, words, answer_s, is_sent_once=deletes), uri)


def _wait(error: Exception, began: float, request: _Request[Any], uri: str) -> None:
    """Wait before the next try, or raise the error if there is to be none."""
    total = environment.tracking_wait_s()
    since = began if _outage.since is None else min(began, _outage.since)
    if not _outage.brief:
        _outage.since = since
    is_waited_for = request.is_repeated and not _outage.brief
    left = since + total - time.monotonic() if is_waited_for else 0.0
    if left <= 0.0:
        _outage.is_given_up = _outage.is_given_up or is_waited_for
        raise StepFailedError(
            f"tracking: {hide(uri)} does not answer ({request.what})",
            required=f"an MLflow server that answers within {total:g} s, the value of {environment.TRACKING_WAIT.name}",
            received=hide(f"{type(error).__name__}: {error}", uri),
            remedy="when MLflow is back, start the same step again: it goes on after the last finished epoch",
        ) from error
    if not _outage.is_given_up:
        _outage.tell(f"MLflow at {hide(uri)} does not answer ({request.what}); tries again for {left:.0f} s")
    time.sleep(min(_PAUSE_S, left))


@contextlib.contextmanager
def _limits(request: _Request[Any]) -> Iterator[None]:
    """Have MLflow's client give up a single request in time, and send it once where it must not be repeated."""
    left = environment.tracking_wait_s()
    if _outage.since is not None:
        left += _outage.since - time.monotonic()
    tries = 1 if request.is_sent_once else _TRIES
    answer_s = min(request.answer_s, left / tries)
    if _outage.brief or _outage.is_given_up:
        answer_s = min(answer_s, _BRIEF_S)
    wanted = {_TIMEOUT: str(max(1, round(answer_s))), _RETRIES: str(tries - 1)}
    # What the user has set wins, but two runs in place of one are nobody's wish.
    ours = {name: wanted[name] for name in wanted if name not in os.environ or (name == _RETRIES and tries == 1)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
