"""Recipes: presets, files, and one-line errors."""

from __future__ import annotations

import pytest

from occ_core.errors import InvalidInput, MissingInput
from occ_core.labels.recipes import PRESETS, Recipe, load_recipe


def test_presets_are_what_they_are_named_for():
    assert list(PRESETS) == ["single", "easyocc", "easyocc-clamped", "shelf", "best", "lidar", "completed"]
    easyocc, clamped, shelf = PRESETS["easyocc"], PRESETS["easyocc-clamped"], PRESETS["shelf"]
    assert (easyocc.past, easyocc.future, easyocc.moving, easyocc.min_hit_share) == (13, 0, "own", 0.0)
    assert clamped.model_copy(update={"clamp": False}) == easyocc
    assert (shelf.past, shelf.future, shelf.min_points) == (None, None, 4) and shelf.min_hit_share > 0
    assert PRESETS["single"].model_copy(update={"past": 13}) == easyocc
    assert [name for name, recipe in PRESETS.items() if recipe.clamp] == ["easyocc-clamped"]
    for recipe in PRESETS.values():  # `model_copy` does not validate
        assert Recipe(**recipe.model_dump()) == recipe


def test_a_recipe_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("past: 3\nfuture: null\npriority: [pedestrian]\n")
    assert load_recipe(path) == Recipe(past=3, future=None, priority=("pedestrian",))
    assert load_recipe("best") is PRESETS["best"]
    path.write_text("")
    assert load_recipe(path) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pasta: 3", "pasta"),
        ("past: -1", "past.*greater than or equal to 0, got -1"),
        ("min_hit_share: 2", "min_hit_share"),
        ("priority: [dragon]", "dragon"),
        ("moving: maybe", "moving"),
        ("- 3", "mapping"),
        ("past: [", "not a YAML file"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_field(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message) as error:
        load_recipe(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(MissingInput, match="'bset'.*single, easyocc, easyocc-clamped, shelf, best, lidar, completed"):
        load_recipe("bset")
