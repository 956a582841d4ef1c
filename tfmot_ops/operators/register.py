"""RegisterOperator, which ends a chain in MLflow's model registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from tfmot_ops.operators.assets import REGISTERED_MODELS, add_version_events
from tfmot_ops.operators.results import mapping_of
from tfmot_ops.operators.step import StepOperator

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg


class RegisterOperator(StepOperator):
    """Puts a TFLite file into MLflow's model registry, as `alias` of `name`, if every gate holds. Input `tflite`.

    The task is skipped where the option `name` is a template that gives nothing. Otherwise it emits events of assets,
    which start other DAGs: of `model_asset(name, alias)`, and after a promotion of `model_asset(name)`.

    Args:
        measured: the result with the metrics that the gates check (`evaluate.output`).
        **kwargs: as for StepOperator. Options: `name`, `alias`, `gates` (metric -> lowest allowed value), `policy` (the
            path of a YAML or JSON file with rules, see `tfmot-ops schema policy`), and `promote`.
        outlets: further assets of the task.
    """

    kind = "register"
    template_fields: Sequence[str] = (*StepOperator.template_fields, "measured")

    def __init__(
        self,
        *,
        measured: Mapping[str, Any] | XComArg | None = None,
        outlets: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(outlets=[*(outlets or ()), REGISTERED_MODELS], **kwargs)
        self.measured = measured

    def execute(self, context: Context) -> dict[str, Any]:
        """Register the file; skipped if the option `name` is a template that gives nothing."""
        if isinstance(self.options, Mapping) and self.options.get("name") in (None, ""):
            raise AirflowSkipException("no name of a registered model is given, so nothing is registered")
        return super().execute(context)

    def _judge(self, answer: dict[str, Any], context: Context) -> None:
        add_version_events(context, super()._options(context), answer)

    def _options(self, context: Context) -> dict[str, Any]:
        measured = mapping_of(self.task_id, "measured", self.measured)
        known = {"metrics": measured.get("metrics", {}), "headline": measured.get("headline")}
        return {**known, **super()._options(context)}
