"""A spec travels where everybody can read it, so it is refused with a secret in it, which is not repeated."""

from __future__ import annotations

import pytest

from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.errors import SpecError
from tfmot_ops.runners.image import environment

SECRET = "s3cr3t"  # noqa: S105 - made up
ARTIFACT = {"sha256": "0" * 64, "size_bytes": 1, "format": "keras_h5"}


def _spec(**fields):
    return StepSpec.model_validate({"step_id": "s", "output_uri": "/out", "options": {"kind": "list"}, **fields})


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("tracking_uri", {"tracking": {"uri": f"http://{SECRET}@mlflow:5000"}}),
        ("tracking_uri", {"tracking": {"uri": f"postgresql://db/mlflow?password={SECRET}"}}),
        ("output_uri", {"output_uri": f"ftp://me:{SECRET}@host/out"}),
        ("inputs.model", {"inputs": {"model": {"uri": f"https://host/m.h5?X-Amz-Signature={SECRET}", **ARTIFACT}}}),
    ],
    ids=["token", "query", "output", "signed"],
)
def test_a_secret_in_a_uri_is_refused(field, fields):
    with pytest.raises(SpecError, match=f"{field} contains a secret") as refused:
        environment(_spec(**fields), Device.CPU, {})
    assert SECRET not in str(refused.value)


def test_names_and_plain_addresses_are_no_secrets():
    spec = _spec(tracking={"uri": "postgresql://mlflow@db/mlflow"}, output_uri="s3://bucket/out")
    assert environment(spec, Device.CPU, {"A": "b"})["A"] == "b"
