"""The documents that cross a process border: their v1 samples stay readable, and wrong ones are refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple, get_args

import pytest
from pydantic import ValidationError

from tfmot_ops.contract import (
    Artifact,
    ArtifactFormat,
    Candidate,
    CandidateOptions,
    ChooseOptions,
    CloseRunOptions,
    CompatOptions,
    CompatResult,
    Document,
    EvaluateOptions,
    FineTuneOptions,
    ForecastOptions,
    Found,
    Goals,
    Headline,
    Judgement,
    LayerReport,
    ListOptions,
    OpenRunOptions,
    Options,
    Outcome,
    PruneOptions,
    Quantization,
    QuantizeOptions,
    Recipe,
    RegisterOptions,
    Scope,
    Sparsity,
    Stage,
    Status,
    StepError,
    StepResult,
    StepSpec,
    StripOptions,
    SummarizeOptions,
    SweepResult,
    Tracking,
    TrainOptions,
)

pytestmark = pytest.mark.airflow

MODEL = Artifact(uri="runs:/0123/model.h5", sha256="ab" * 32, size_bytes=1234, format=ArtifactFormat.KERAS_H5)
TFLITE = Artifact(uri="s3://bucket/tflite.tflite", sha256="cd" * 32, size_bytes=567, format=ArtifactFormat.TFLITE)
RECIPE = Recipe(
    name="mine",
    sparsity=Sparsity(ratio=0.5, n_of_m=(2, 4), scope=Scope(include=("block_*",), exclude=("class:Dense",))),
    quantization=Quantization(calibration_samples=100),
)
TRAINED = StepResult(
    step_id="train",
    kind="train",
    spec_sha256="12" * 32,
    status=Status.OK,
    outputs={"model": MODEL},
    metrics={"accuracy": 0.9, "latency_ms": 0.5},
)
FOUND = Found(
    candidate=Candidate(name="mine", recipe=RECIPE, tries="half of the weights are zero", zeros=50),
    metrics={"accuracy": 0.89, "target_flash_bytes": 5000.0},
    headline=Headline(name="accuracy"),
    seconds=12.5,
    file=TFLITE,
    run_id="89ab",
)
OPTIONS = (
    OpenRunOptions(name="optimize resnet8", parameters={"model": "resnet8", "limit": None}),
    TrainOptions(dataset="digits", model="resnet8", epochs=3, limit=100),
    PruneOptions(dataset="digits", recipe="sparse50_wi8_ai8", epochs=2),
    FineTuneOptions(dataset="digits", recipe=RECIPE),
    StripOptions(dataset="digits", recipe=RECIPE),
    QuantizeOptions(dataset="digits", recipe="wi8_ai8", batch_size=32),
    EvaluateOptions(dataset="digits", recipe="wi8_ai8"),
    RegisterOptions(name="digits", metrics={"accuracy": 0.9}, gates={"accuracy": 0.8}),
    ListOptions(what="models"),
    CompatOptions(architectures=("MobileNetV2",), recipe="wi8_ai8", memory_limit_gib=16.0),
    SummarizeOptions(architectures=("MobileNet",), recipes=("wi8_ai8",)),
    ForecastOptions(),
    CandidateOptions(
        dataset="digits",
        model="resnet8",
        recipe=RECIPE,
        trained=TRAINED,
        shared={"34" * 32: TRAINED},
        target="cortex_m",
    ),
    ChooseOptions(target="cortex_m", goals=Goals(max_drop=1.0, max_flash=8192), found=(FOUND,), left_out={"x": "why"}),
    CloseRunOptions(steps={"train": {"accuracy": 0.9}}, failed=("quantize",)),
)


def _spec(options: Any) -> StepSpec:
    return StepSpec(
        step_id=options.kind,
        inputs={"model": MODEL, "tflite": TFLITE},
        seed=7,
        tracking=Tracking(
            uri="sqlite:///mlflow.db", parent_run_id="4567", key={"dag_id": "d", "run_id": "r", "task_id": "t"}
        ),
        options=options,
    )


RESULT = StepResult(
    step_id="quantize",
    kind="quantize",
    spec_sha256="ef" * 32,
    status=Status.FAILED,
    outputs={"model": MODEL, "tflite": TFLITE},
    metrics={"accuracy": 0.875},
    parameters={"recipe": {"name": "mine"}},
    layers=(LayerReport(path="block_1/conv", class_name="Conv2D", outcome=Outcome.QUANTIZED, reason="int8 kernel"),),
    error=StepError(type="SparsityLostError", message="layer 'a' lost its sparsity", exit_code=4),
    versions={"tensorflow": "2.21.0"},
    duration_s=1.5,
    tracking_run_id="89ab",
)
COMPAT = CompatResult(
    architecture="MobileNetV2",
    recipe="wi8_ai8",
    status=Status.FAILED,
    failed_stage=Stage.EXPORT,
    error_class="export",
    error_type="ExportError",
    message="no",
    metrics={"seconds": 2.0},
)
SWEEP = SweepResult(
    sweep_id="20260102T020000Z",
    started_at=datetime(2026, 1, 2, 2, tzinfo=UTC),
    duration_s=60.0,
    cells=(COMPAT,),
    judgement=Judgement(regressions={"MobileNetV2/wi8_ai8": "passed before"}),
    versions={"tensorflow": "2.21.0"},
    repros={"MobileNetV2/wi8_ai8": "MobileNetV2-wi8_ai8.py"},
    run_url="http://127.0.0.1:5000/#/experiments/1/runs/2",
)
SAMPLES: dict[str, Document] = {
    **{f"spec_{options.kind}": _spec(options) for options in OPTIONS},
    "result": RESULT,
    "recipe": RECIPE,
    "artifact": MODEL,
    "compat_result": COMPAT,
    "sweep_result": SWEEP,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_v1_sample_is_written_and_read_as_ever(name, golden):
    document = SAMPLES[name]
    text = document.model_dump_json(indent=2) + "\n"
    golden(f"v1/{name}.json", text)
    assert type(document).model_validate_json(text) == document


def test_every_kind_has_a_sample():
    union = get_args(Options)[0]
    assert {type(options) for options in OPTIONS} == set(get_args(union))


def test_the_digest_of_a_spec_is_that_of_its_content():
    spec = _spec(OPTIONS[1])
    assert spec.sha256() == StepSpec.model_validate_json(spec.model_dump_json()).sha256()
    assert spec.sha256() != spec.model_copy(update={"seed": 8}).sha256()


class Wrong(NamedTuple):
    field: str
    value: Any
    location: tuple[Any, ...]


WRONG = {
    "unknown field": Wrong("extra", 1, ("extra",)),
    "unknown kind": Wrong("options", {"kind": "shrink"}, ("options",)),
    "epochs below zero": Wrong(
        "options",
        {"kind": "train", "model": "m", "dataset": "d", "epochs": -1},
        ("options", "train", "epochs"),
    ),
    "seed too large": Wrong("seed", 2**31, ("seed",)),
    "other version": Wrong("schema_version", 2, ("schema_version",)),
    "no place for outputs": Wrong("tracking", None, ()),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_spec_is_refused_at_its_field(case):
    document = {**_spec(OPTIONS[1]).model_dump(mode="json"), case.field: case.value}
    with pytest.raises(ValidationError) as caught:
        StepSpec.model_validate(document)
    assert [error["loc"] for error in caught.value.errors()] == [case.location]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_is_finite(value):
    with pytest.raises(ValidationError, match="must be finite"):
        StepResult(step_id="s", kind="train", spec_sha256="", status=Status.OK, metrics={"accuracy": value})


def test_documents_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        RECIPE.name = "other"


@pytest.mark.parametrize("name", ["", "  ", ".", "..", "team/net", "a:b", "two\nlines", "n" * 257])
def test_a_name_that_the_registry_refuses_is_refused(name):
    with pytest.raises(ValidationError):
        RegisterOptions(name=name)


@pytest.mark.parametrize("alias", ["", "latest", "Latest", "v1", "V22", "to prod", "a.b", "a/b", "a" * 256])
def test_an_alias_that_the_registry_refuses_is_refused(alias):
    with pytest.raises(ValidationError):
        RegisterOptions(name="net", alias=alias)


@pytest.mark.parametrize("name", ["O'Brien", 'the "best"', "größe", "net v1", "..."])
def test_other_names_are_taken(name):
    assert RegisterOptions(name=name, alias="to-prod_2").name == name
