"""ApprovePromotionOperator: a person decides in Airflow whether a registered version becomes the champion.

Not imported by `tfmot_ops.operators` itself, as it needs Airflow's standard provider, which operators of steps do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowSkipException

from tfmot_ops.contract import Headline
from tfmot_ops.contract.figures import figure_table
from tfmot_ops.operators.results import mapping_of

if TYPE_CHECKING:
    from airflow.sdk import Context


class ApprovePromotionOperator(ApprovalOperator):
    """Shows the main figures of a registered version on Airflow's page and waits for `Approve` or `Reject`.

    After `Reject`, the tasks downstream, such as the one that promotes, are skipped; the version stays a candidate.

    Args:
        model: name of the registered model.
        registered: the result of a RegisterOperator (`register.output`).
        measured: the result with the figures (`evaluate.output`).
        wanted: whether a person is asked; otherwise the task is skipped, and those downstream with it.
        **kwargs: as for Airflow's ApprovalOperator, such as `assigned_users`, `notifiers` and `response_timeout`.
    """

    template_fields: Sequence[str] = (*ApprovalOperator.template_fields, "model", "registered", "measured", "wanted")

    def __init__(
        self, *, model: str, registered: Any = None, measured: Any = None, wanted: Any = True, **kwargs: Any
    ) -> None:
        kwargs.setdefault("subject", "Shall this version become the champion?")
        super().__init__(**kwargs)
        self.model = model
        self.registered = registered
        self.measured = measured
        self.wanted = wanted

    def execute(self, context: Context) -> Any:
        """Ask, and wait; Airflow resumes the task with `execute_complete` after the answer."""
        if not self.wanted:
            raise AirflowSkipException("nobody is to be asked: the parameter `approval` is off")
        registered = mapping_of(self.task_id, "registered", self.registered)
        measured = mapping_of(self.task_id, "measured", self.measured)
        version = mapping_of(self.task_id, "registered", registered.get("parameters")).get("registered_version")
        self.subject = f"Shall version {version} of {self.model} become the champion?"
        headline = measured.get("headline")
        table = figure_table(
            mapping_of(self.task_id, "measured", measured.get("metrics")),
            Headline.model_validate(headline) if headline else None,
        )
        self.body = f"{table}\n\nThe whole model card is the description of version {version} in MLflow."
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after `Approve`; say after `Reject` that nothing is promoted."""
        if self.REJECT in (event.get("chosen_options") or ()):
            # Before Airflow's own part, which ends the task where it skips those downstream.
            who = (event.get("responded_by_user") or {}).get("name") or "a person"
            self.log.warning("rejected by %s: %s gets no new champion", who, self.model)
        return super().execute_complete(context, event)
