"""Notifiers for regressions in a sweep, for `on_failure_callback` of the summary task."""

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

#: Variable with the URL to which the DAGs post regressions; may be a template, such as `{{ conn.sweep_webhook.host }}`.
WEBHOOK_VARIABLE = SWEEP_WEBHOOK.name
_TIMEOUT_S = 10.0


class _RegressionNotifier(BaseNotifier):
    """Reports regressions and missing cells; does nothing when the task failed for another reason."""

    def notify(self, context: Context) -> None:
        """Called by Airflow with the failed task's context."""
        judgement = context["ti"].xcom_pull(task_ids=context["ti"].task_id, key=JUDGEMENT_KEY)
        if isinstance(judgement, Mapping) and (judgement["regressions"] or judgement["missing"]):
            self.deliver({"dag_id": context["dag"].dag_id, "run_id": context["run_id"], **judgement})

    def deliver(self, message: dict[str, Any]) -> None:
        """Deliver `dag_id`, `run_id` and, by kind, cell -> sentence."""
        raise NotImplementedError


class LogNotifier(_RegressionNotifier):
    """Writes to the log of the task."""

    def deliver(self, message: dict[str, Any]) -> None:
        """One line per cell."""
        for kind in ("regressions", "missing"):
            for cell, how in message[kind].items():
                logging.getLogger(__name__).error("%s: %s %s", kind, cell, how)


class WebhookNotifier(_RegressionNotifier):
    """Posts JSON with a field `text` to a URL, the format of chat services' incoming webhooks.

    Args:
        url: http or https URL; keep a secret URL in an Airflow connection or variable, and give its template here.
    """

    template_fields = ("url",)

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def deliver(self, message: dict[str, Any]) -> None:
        """Post a field `text` for people, and the whole judgement."""
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
        # Raised outside the exception handler: the webhook's URL is a secret, and the library's message may contain it.
        raise StepFailedError(
            "the webhook for regressions was not reached",
            required=f"a URL that accepts JSON by POST, in {WEBHOOK_VARIABLE} or the notifier's `url`",
            received=received,
            remedy="correct the URL; the task's log lists the regressions",
        )


def notifiers() -> list[BaseNotifier]:
    """The notifiers of the DAGs: the task's log, and the webhook if the deployment sets its URL."""
    url = SWEEP_WEBHOOK.get()
    return [LogNotifier(), *([WebhookNotifier(url)] if url else [])]
