"""Notifiers for a sweep that got worse: as `on_failure_callback` of the summary task."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

from airflow.sdk.bases.notifier import BaseNotifier

from tfmot_ops.errors import StepFailedError
from tfmot_ops.operators.sweep import JUDGEMENT_KEY
from tfmot_ops.system.environment import SWEEP_WEBHOOK

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Address that the DAGs' webhook posts to; may be a template, such as `{{ conn.sweep_webhook.host }}`.
WEBHOOK_VARIABLE = SWEEP_WEBHOOK.name
_TIMEOUT_S = 10.0


class _RegressionNotifier(BaseNotifier):
    """Tells what got worse; silent when the task failed for another reason."""

    def notify(self, context: Context) -> None:
        """Called by Airflow with the failed task's context."""
        judgement = context["ti"].xcom_pull(task_ids=context["ti"].task_id, key=JUDGEMENT_KEY)
        if isinstance(judgement, Mapping) and (judgement["regressions"] or judgement["missing"]):
            self.tell({"dag_id": context["dag"].dag_id, "run_id": context["run_id"], **judgement})

    def tell(self, message: dict[str, Any]) -> None:
        """Deliver `dag_id`, `run_id` and, by kind, cell -> sentence."""
        raise NotImplementedError


class LogNotifier(_RegressionNotifier):
    """Writes to the log of the task."""

    def tell(self, message: dict[str, Any]) -> None:
        """One line per cell."""
        for kind in ("regressions", "missing"):
            for cell, how in message[kind].items():
                logging.getLogger(__name__).error("%s: %s %s", kind, cell, how)


class WebhookNotifier(_RegressionNotifier):
    """Posts JSON to an address, as chat services take it.

    Args:
        url: http(s) address; keep a secret one in a connection or variable, and give its template here.
    """

    template_fields = ("url",)

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def tell(self, message: dict[str, Any]) -> None:
        """Post `text`, for people, and the whole judgement."""
        worse = {**message["regressions"], **message["missing"]}
        text = f"{message['dag_id']} {message['run_id']}: " + "; ".join(f"{c}: {how}" for c, how in worse.items())
        body = json.dumps({"text": text, **message}).encode()
        try:
            request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})  # noqa: S310 - the deployment's own address
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - see above
                return
        except HTTPError as error:
            received = f"HTTP {error.code}"
        except (OSError, HTTPException, ValueError) as error:  # ValueError: no address
            received = type(error).__name__
        # Outside of the handlers: a webhook's address is a secret as a whole, and the library's message may hold it.
        raise StepFailedError(
            "the webhook for regressions was not reached",
            required=f"an address that takes JSON, in {WEBHOOK_VARIABLE} or the notifier's `url`",
            received=received,
            remedy="correct the address; what got worse is in the log of the task",
        )


def notifiers() -> list[BaseNotifier]:
    """What the DAGs tell regressions to: the log, and the webhook where the deployment names one."""
    url = SWEEP_WEBHOOK.get()
    return [LogNotifier(), *([WebhookNotifier(url)] if url else [])]
