import os
import time
import traceback

import pytest

from tfmot_ops.contract import Recipe
from tfmot_ops.errors import RecipeError
from tfmot_ops.recipes.files import is_recipe_file, read_recipe, read_training


def test_yaml_and_json_are_one_form(tmp_path):
    (tmp_path / "r.yaml").write_text("name: mine\nsparsity: {ratio: 0.6}\n")
    (tmp_path / "r.json").write_text('{"name": "mine", "sparsity": {"ratio": 0.6}}')
    assert read_recipe(tmp_path / "r.yaml") == read_recipe(str(tmp_path / "r.json"))
    assert isinstance(read_recipe(tmp_path / "r.yaml"), Recipe)


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        pytest.param("r.yaml", "name: mine\nsparsity: {ratio: 2}\n", "field sparsity.ratio", id="range"),
        pytest.param("r.yaml", "name: mine\nsparsty: {}\n", "field sparsty", id="unknown-field"),
        pytest.param("r.yaml", "[1, 2]", "required: a mapping", id="no-mapping"),
        pytest.param("r.yaml", "a: [", "required: YAML or JSON", id="no-yaml"),
        pytest.param("r.json", "{", "required: YAML or JSON", id="no-json"),
        pytest.param("r.toml", "", "required: a name ending in", id="other-ending"),
        pytest.param("r.yml", None, "required: a readable file", id="missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, text, finding):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=finding):
        read_recipe(tmp_path / name)


def test_a_training_plan_is_a_file_of_its_own_or_in_a_recipes(tmp_path):
    plan = "early_stopping: {patience: 2}\n"
    (tmp_path / "plan.yaml").write_text(plan)
    (tmp_path / "recipe.yaml").write_text(f"name: mine\ntraining: {{{plan.strip()}}}\n")
    (tmp_path / "bare.yaml").write_text("name: mine\n")
    assert read_training(tmp_path / "plan.yaml") == read_training(tmp_path / "recipe.yaml")
    assert read_training(tmp_path / "plan.yaml").early_stopping.patience == 2
    assert read_training(tmp_path / "bare.yaml") is None
    (tmp_path / "wrong.yaml").write_text("early_stoping: {patience: hunter2secret}\n")
    with pytest.raises(RecipeError, match="early_stoping") as caught:
        read_training(tmp_path / "wrong.yaml")
    assert "hunter2secret" not in str(caught.value)
    assert "tfmot-ops schema training" in str(caught.value)


def test_a_presets_name_is_no_file():
    assert not is_recipe_file("sparse50_wi8_ai8")
    assert is_recipe_file("recipes/mine.yml")


SECRET = "hunter2secret"  # noqa: S105 - made up
LOL = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGED = "a0: &a0 {b: 1, c: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)
)
HOSTILE = {
    "bomb.yaml": f"{LOL}name: x\n",
    "bomb_name.yaml": f"{LOL}name: *a9\n",
    "bomb_scope.yaml": f"{LOL}name: x\nsparsity: {{ratio: 0.5, scope: {{include: *a9}}}}\n",
    "merge.yaml": f"{MERGED}name: x\n",
    "deep.yaml": "name: " + "[" * 100_000,
    "deep_block.yaml": "name:\n" + "".join("  " * n + "-\n" for n in range(1, 200)),
    "deep.json": '{"name":' + "[" * 100_000,
    "deep_closed.json": '{"name":' + "[" * 900 + "]" * 900 + "}",
    "loop.yaml": "name: &a [*a]\n",
    "long_number.yaml": f"name: x\nbudget: {{qat_epochs: {'9' * 5000}}}\n",
    "long_number.json": '{"name": "x", "budget": {"qat_epochs": -' + "9" * 4000 + "}}",
    "many_fields.yaml": "name: x\n" + "".join(f"field_{n}: {n}\n" for n in range(2000)),
    "large.yaml": "name: x\nsparsity: {ratio: 0.5, scope: {include: [" + ", ".join(["a" * 20] * 20_000) + "]}}\n",
}
PRIVATE = {
    "value.yaml": f"name: {SECRET}!\n",
    "nested.yaml": f"name: x\nsparsity: {{ratio: {{password: {SECRET}}}}}\n",
    "list.yaml": f"name: x\nsparsity: {{ratio: 0.5, scope: {{include: [[{SECRET}]]}}}}\n",
    "enum.yaml": f"name: x\nquantization: {{weights: {SECRET}}}\n",
    "key.yaml": f"name: x\n{SECRET}: 1\n",
    "text.yaml": f"{SECRET}\n",
    "tag.yaml": f"name: !{SECRET} x\n",
    "alias.yaml": f"name: *{SECRET}\n",
    "broken.yaml": f"password: [{SECRET}\nname: }}\n",
    "directive.yaml": f"%{SECRET}\nname: x\n",
    "value.json": f'{{"name": "{SECRET}!"}}',
    "broken.json": f'{{"password": "{SECRET}" "name"',
    "bytes.yaml": b"name: " + SECRET.encode() + b"\xff",
}


def refused(path):
    """What a person or a log sees of the refusal, causes included, as Airflow writes them, too."""
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert caught.value.exit_code == 2
    return str(caught.value), "".join(traceback.format_exception(caught.value))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_soon_and_in_few_words(tmp_path, name):
    (tmp_path / name).write_text(HOSTILE[name], encoding="utf-8")
    began = time.process_time()
    message, _ = refused(tmp_path / name)
    assert time.process_time() - began < 10
    assert len(message) < 3000


@pytest.mark.parametrize("name", PRIVATE)
def test_nothing_of_a_file_is_quoted(tmp_path, name):
    text = PRIVATE[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    message, log = refused(tmp_path / name)
    assert SECRET not in message + log
    assert name in message


def test_what_is_there_instead_is_told_by_its_kind_and_place(tmp_path):
    (tmp_path / "r.yaml").write_text("name: my recipe!\nbudget: {qat_epoch: 3, fine_tune_epochs: -1}\n")
    message, _ = refused(tmp_path / "r.yaml")
    assert "field name" in message
    assert "received: a text of 10 characters" in message
    assert "budget.qat_epoch: required Extra inputs are not permitted" in message, "a typing error is named"
    assert "budget.fine_tune_epochs: required Input should be greater than or equal to 0, received -1" in message
    (tmp_path / "r.json").write_text('{\n  "name": oops}')
    assert "something else at line 2, column 11" in refused(tmp_path / "r.json")[0]


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "r.yaml")
    assert "a pipe, a socket or a device instead of a file" in refused(tmp_path / "r.yaml")[0]


def test_anchors_may_be_used(tmp_path):
    text = "name: mine\nsparsity: {ratio: 0.6, scope: &s {exclude: [a]}}\nquantization: {scope: *s}\n"
    (tmp_path / "r.yaml").write_text(text)
    assert read_recipe(tmp_path / "r.yaml").quantization.scope.exclude == ("a",)
