import pytest

from tfmot_ops.contract import Recipe
from tfmot_ops.errors import RecipeError
from tfmot_ops.recipe_file import is_recipe_file, read_recipe


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


def test_a_presets_name_is_no_file():
    assert not is_recipe_file("sparse50_wi8_ai8")
    assert is_recipe_file("recipes/mine.yml")
