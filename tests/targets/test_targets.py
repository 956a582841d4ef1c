"""Targets: the profiles that ship, what a recipe becomes for them, and what their tools say of real files."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ai_edge_litert import schema_py_generated as schema
from pydantic import ValidationError

from tfmot_ops import core, targets
from tfmot_ops.contract import SHIPPED_TARGETS, Limits, Target, Vela
from tfmot_ops.contract.target import bytes_of
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.tflite.interpreter import raw_inputs
from tfmot_ops.core.tflite.profile import layers_by_operation
from tfmot_ops.errors import RecipeError, SpecError, StepFailedError, UnsupportedModelError
from tfmot_ops.steps import catalogue
from tfmot_ops.targets import vela
from tfmot_ops.targets.cost import broken_limits, equal_share
from tfmot_ops.targets.kernels import run_reference, run_tflm
from tfmot_ops.targets.tool import Tool

L = keras.layers
PROFILES = Path(targets.__file__).with_name("profiles")
X = np.random.default_rng(0).random((64, 16, 16, 3), dtype=np.float32)


def _with_statistics(model: Any) -> Any:
    """The model with other statistics in each BatchNormalization, whose factors differ from channel to channel."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            size = layer.gamma.shape[0]
            layer.set_weights([
                rng.uniform(0.1, 4.0, size), rng.normal(size=size),
                rng.normal(size=size) * 0.1, rng.uniform(0.2, 3.0, size),
            ])  # fmt: skip
    return model


def net(activation: str = "relu") -> Any:
    """Each kind of kernel, folded normalisations, a free-standing one, and an activation."""
    set_seed(0)
    inputs = L.Input((16, 16, 3))
    x = L.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False, depth_multiplier=2)(x))
    x = L.Activation(activation, name="bend")(x)
    x = L.BatchNormalization()(L.Conv2DTranspose(6, 3, strides=2, padding="same")(x))
    x = L.BatchNormalization()(L.MaxPooling2D()(x))
    x = L.GlobalAveragePooling2D()(x)
    return _with_statistics(keras.Model(inputs, L.Dense(4, activation="softmax")(x)))


def exported(model: Any, recipe: str, target: Target | str | None) -> tuple[Any, bytes]:
    """(model that was exported, file) for a recipe on a target."""
    on_target = targets.resolve_target(target) if target is not None else None
    adapted = targets.adapted(core.recipes.decode(recipe), on_target)
    if "ptq" not in recipe:
        model, _ = core.quantize(model, adapted, X)
    return model, core.export_tflite(model, adapted, X)


def test_the_targets_that_ship_are_the_files():
    assert sorted(path.stem for path in PROFILES.glob("*.yaml")) == sorted(SHIPPED_TARGETS)
    for name in SHIPPED_TARGETS:
        target = targets.resolve_target(name)
        assert target.name == name
        assert target.description
        assert catalogue("targets")[name] == target.description


def test_the_operations_of_a_target_are_tflites():
    known = {name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    for name in SHIPPED_TARGETS:
        assert set(targets.resolve_target(name).operations or ()) <= known


@pytest.mark.parametrize(("text", "size"), [("256k", 262_144), ("1M", 1_048_576), ("96 KiB", 98_304), ("5000", 5000)])
def test_sizes_are_read(text: str, size: int):
    assert bytes_of(text) == size
    assert Limits.model_validate({"flash_bytes": text}).flash_bytes == size


@pytest.mark.parametrize("text", ["many", "1.5k", "-3k", "2G", "0", ""])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ValidationError, match=r"256k|greater than or equal to 1"):
        Limits.model_validate({"flash_bytes": text})


def test_an_unknown_name_lists_the_targets():
    with pytest.raises(SpecError, match="cortex_m") as caught:
        targets.resolve_target("cortex_x")
    assert caught.value.received == "cortex_x"
    assert caught.value.exit_code == 2


def test_a_target_of_a_file(tmp_path: Path):
    own = {"name": "mine", "weight_scales": "per_tensor", "limits": {"flash_bytes": "64k"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    target = targets.resolve_target(str(tmp_path / "mine.yaml"))
    assert target.limits.flash_bytes == 65_536
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(own | {"flash": 3}))
    with pytest.raises(RecipeError, match="Extra inputs"):
        targets.resolve_target(str(tmp_path / "wrong.yaml"))


@pytest.mark.parametrize("recipe", ["wi8_afp32", "wi16f", "wi8_ai16_ptq", "wi8_ai8_keep10"])
def test_a_recipe_without_int8_is_refused_where_the_device_takes_int8(recipe: str):
    with pytest.raises(SpecError, match=r"int8 weights and int8 activations|every layer in int8"):
        targets.adapted(core.recipes.decode(recipe), targets.resolve_target("cortex_m"))


def test_the_target_of_the_documentation_is_one():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "targets-and-search.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert Target.model_validate(yaml.safe_load(block)).limits.ram_bytes == 65_536
    for name in SHIPPED_TARGETS:
        assert f"`{name}`" in page


# Input and output types, and scales


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
def test_inputs_and_outputs_have_the_targets_types(recipe: str, kind: str):
    model, data = exported(net(), recipe, Target(name="t", input_type=kind, output_type=kind))
    profile = core.profile_tflite(data)
    assert profile.input_dtypes == profile.output_dtypes == (kind,)
    assert profile.int8_mac_fraction == 1.0
    core.require_recipe(
        profile, targets.adapted(core.recipes.decode(recipe), Target(name="t", input_type=kind, output_type=kind)), []
    )
    assert core.sqnr_db(core.predict(model, X), core.predict(data, X)) > 25.0


def _scales(data: bytes) -> list[int]:
    model = schema.ModelT.InitFromPackedBuf(data)
    quantizations = [tensor.quantization for tensor in model.subgraphs[0].tensors]
    return [len(q.scale) for q in quantizations if q is not None and q.scale is not None]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq"])
def test_a_target_with_one_scale_gets_one_scale_in_every_kernel(recipe: str):
    model, data = exported(net("gelu"), recipe, "per_tensor_npu")
    assert max(_scales(data)) == 1
    assert max(_scales(exported(net("gelu"), recipe, None)[1])) > 1
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0)
    assert core.sqnr_db(core.predict(model, X), core.predict(data, X)) > 30.0


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.Conv2D(16, 3, use_bias=False),
        lambda: L.DepthwiseConv2D(3, depth_multiplier=4, use_bias=False),
        lambda: L.Conv2DTranspose(16, 3, use_bias=False),
    ],
    ids=["convolution", "depthwise", "transposed"],
)
def test_qat_rounds_the_folded_kernel_as_the_file_does(layer: Any):
    """Factors from 0.03 to 30: a kernel rounded before the fold has other levels than the file."""
    set_seed(0)
    inputs = L.Input((16, 16, 3))
    model = keras.Model(inputs, L.BatchNormalization()(layer()(inputs)))
    batch_norm = model.layers[-1]
    size = batch_norm.gamma.shape[0]
    batch_norm.set_weights([np.geomspace(0.03, 30.0, size), np.zeros(size), np.zeros(size), np.ones(size)])
    quantized, data = exported(model, "wi8_ai8", Target(name="t", weight_scales="per_tensor"))
    # One level of the output is about 48 dB below its range; a kernel rounded before the fold gave under 20 dB.
    assert core.sqnr_db(core.predict(quantized, X), core.predict(data, X)) > 40.0


# Operations


@pytest.mark.slow
def test_a_gelu_becomes_a_table_with_the_same_outputs_where_the_device_has_none():
    _, plain = exported(net("gelu"), "wi8_ai8", None)
    _, data = exported(net("gelu"), "wi8_ai8", "cortex_m")
    assert "GELU" in core.profile_tflite(plain).op_counts
    assert "GELU" not in core.profile_tflite(data).op_counts
    np.testing.assert_array_equal(core.predict(plain, X), core.predict(data, X))
    inputs = raw_inputs(data, X[:8])
    np.testing.assert_array_equal(
        run_tflm(data, inputs, "cortex_m").outputs[0], run_reference(data, inputs, "cortex_m")[0]
    )
    with pytest.raises(UnsupportedModelError, match="GELU"):
        run_tflm(plain, inputs, "cortex_m")


@pytest.mark.parametrize("name", ["exponential", "gelu", "leaky", "swish"])
def test_functions_of_single_elements_become_tables_on_a_device_without_them(name: str):
    inputs = L.Input((16, 16, 3))
    bent = L.LeakyReLU(0.2)(inputs) if name == "leaky" else L.Activation(name)(inputs)
    model = keras.Model(inputs, L.Conv2D(4, 1)(bent))
    allowed = ("CONV_2D", "CAST", "ADD", "GATHER", "MUL", "LOGISTIC")
    quantized, data = exported(model, "wi8_ai8", Target(name="t", operations=allowed))
    assert set(core.profile_tflite(data).op_counts) <= {*allowed, "RELU"}
    assert core.sqnr_db(core.predict(quantized, X), core.predict(data, X)) > 25.0


def test_a_missing_operation_is_named_with_its_layer():
    _, data = exported(net("gelu"), "wi8_ai8_ptq", "cortex_m")  # PTQ makes no tables
    found = layers_by_operation(data)
    assert found["GELU"] == ["bend"]
    with pytest.raises(UnsupportedModelError, match=r"GELU \(bend\)") as caught:
        targets.require_operations(targets.resolve_target("cortex_m"), found)
    assert caught.value.exit_code == 3


# The tools


def test_tflite_micro_gives_the_reference_kernels_outputs_and_the_arena():
    _, data = exported(net("swish"), "wi8_ai8", "cortex_m")
    figures, parameters = targets.cost_on(targets.resolve_target("cortex_m"), data, {}, raw_inputs(data, X))
    assert figures["tflm_equal_outputs"] == 1.0
    assert figures["target_flash_bytes"] == len(data)
    # The widest tensors: the transposed convolution's input, 16 x 16 x 16, and its output, 32 x 32 x 6.
    assert 16 * 16 * 16 + 32 * 32 * 6 < figures["target_ram_bytes"] < 200_000
    assert parameters == {"target": "cortex_m"}
    outputs = run_reference(data, raw_inputs(data, X), "cortex_m")
    assert equal_share(outputs, [output + 1 for output in outputs]) == 0.0


def test_a_range_that_ends_the_kernels_process_is_a_refusal():
    """A softmax of logits that hardly differ, as of an untrained model: its scale is below what the kernels take."""
    inputs = L.Input((8,))
    tiny = keras.initializers.RandomUniform(-1e-9, 1e-9, seed=0)
    model = keras.Model(inputs, L.Dense(4, activation="softmax", kernel_initializer=tiny)(inputs))
    x = np.random.default_rng(0).random((32, 8), dtype=np.float32)
    data = core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), x)
    for run in (run_tflm, run_reference):
        with pytest.raises(UnsupportedModelError, match="cannot run the file") as caught:
            run(data, raw_inputs(data, x), "cortex_m")
        assert caught.value.exit_code == 3


def test_several_inputs_and_outputs_in_tflite_micro():
    one, two = L.Input((8,), name="one"), L.Input((8,), name="two")
    joined = L.Concatenate()([L.Dense(6, activation="relu")(one), two])
    model = keras.Model([one, two], [L.Dense(2, name="a")(joined), L.Dense(3, name="b")(joined)])
    x = [np.random.default_rng(seed).random((16, 8), dtype=np.float32) for seed in (0, 1)]
    data = core.export_tflite(
        core.quantize(model, core.recipes.decode("wi8_ai8"), x)[0], core.recipes.decode("wi8_ai8")
    )
    inputs = raw_inputs(data, x)
    outputs, expected = run_tflm(data, inputs, "cortex_m").outputs, run_reference(data, inputs, "cortex_m")
    assert [output.shape for output in outputs] == [output.shape for output in expected]
    for one_output, other in zip(outputs, expected, strict=True):
        # TFLite Micro's FULLY_CONNECTED rounds a value halfway between two levels to the other one.
        assert np.max(np.abs(one_output.astype(int) - other)) <= 1


@pytest.mark.parametrize("name", ["ethos_u55_128", "ethos_u65_256", "ethos_u85_256"])
def test_vela_compiles_for_each_npu_that_ships(name: str):
    _, data = exported(net(), "wi8_ai8", name)
    figures, parameters = targets.cost_on(targets.resolve_target(name), data, {"latency_ms": 1.0}, [])
    assert figures["npu_share"] == 1.0
    assert "cpu_operations" not in parameters
    assert figures["npu_cycles"] > 0.0
    assert 0.0 < figures["target_inference_ms"] < 10.0
    assert 0.0 < figures["target_ram_bytes"] < 200_000


def test_operations_beside_the_npu_are_named_with_their_layer():
    inputs = L.Input((16, 16, 3))
    x = L.LayerNormalization(name="level")(L.Conv2D(16, 3, padding="same")(inputs))
    _, data = exported(keras.Model(inputs, L.Conv2D(4, 3)(x)), "wi8_ai8", "ethos_u55_128")
    figures, parameters = targets.cost_on(targets.resolve_target("ethos_u55_128"), data, {}, [])
    assert 0.5 < figures["npu_share"] < 1.0
    assert all(line.startswith("Mean of level") for line in parameters["cpu_operations"]), parameters


def test_vela_refuses_settings_that_do_not_fit():
    _, data = exported(net(), "wi8_ai8_ptq", None)
    wrong = Vela(accelerator="ethos-u55-128", system_config="No_Such", memory_mode="Shared_Sram")
    with pytest.raises(UnsupportedModelError, match="No_Such"):
        vela.compile_file(data, wrong, "mine")


def test_a_tool_that_is_not_installed_is_said_before_training(monkeypatch: pytest.MonkeyPatch):
    for name in ("tflite_micro", "ethosu", "ethosu.vela"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("cortex_m", "ethos_u55_128"):
        with pytest.raises(SpecError, match=r"tfmot-ops\[targets\]"):
            targets.require_tools(targets.resolve_target(name))
    targets.require_tools(targets.resolve_target("litert_cpu"))


def test_a_program_that_hangs_is_ended():
    endless = Tool("Endless", "json", "import time; time.sleep(600)")
    with pytest.raises(StepFailedError, match="within 2 s"):
        endless.run([], timeout_s=2.0)


# Limits


def test_limits_name_what_is_required_and_received():
    target = Target(name="small", limits=Limits(flash_bytes=1000, ram_bytes=500, npu_share=0.9))
    assert not broken_limits(target, {"target_flash_bytes": 1000, "target_ram_bytes": 500, "npu_share": 0.9})
    with pytest.raises(StepFailedError) as caught:
        targets.require_within_limits(target, {"target_flash_bytes": 1001.0, "target_ram_bytes": 500.0})
    assert "flash_bytes at most 1,000" in caught.value.required
    assert "flash_bytes 1,001" in caught.value.received
    assert "npu_share not measured" in caught.value.received
    assert "ram_bytes" not in caught.value.required
