"""A recipe carries only what it uses: how much code its imports reach, and that no other wing of inputs is in it."""

from __future__ import annotations

import pytest

from recipes.__main__ import RECIPES
from recipes.commands._closure import closure, count_lines
from recipes.commands._discovery import find_recipes

# Lines, as of the day that common/ became rooms and wings, and a tenth: the most that later features may add in all.
LIMITS = {
    name: round(1.1 * lines)
    for name, lines in {
        "image_classification": 6600, "bert_sentiment": 7300, "object_detection": 8300, "speech_wav2vec": 8900,
    }.items()
}  # fmt: skip
WINGS = ("images", "texts", "speech")
RECIPES_HERE = [recipe.name for recipe in find_recipes(RECIPES)]


def reached(name: str) -> list[str]:
    files = closure(RECIPES.parent, [RECIPES / name / "recipe.py"])
    return [file.relative_to(RECIPES.parent).as_posix() for file in files]


@pytest.mark.parametrize("name", RECIPES_HERE)
def test_a_recipe_holds_one_wing_of_inputs_and_no_other_recipe(name: str) -> None:
    files = reached(name)
    wings = {wing for wing in WINGS for file in files if file.startswith(f"common/{wing}/")}
    assert len(wings) <= 1, f"{name} reaches {sorted(wings)}"
    assert [file for file in files if file.startswith("recipes/")] == [f"recipes/{name}/recipe.py"]


@pytest.mark.parametrize("name", LIMITS)
def test_a_recipe_stays_small(name: str) -> None:
    lines = count_lines(RECIPES.parent / file for file in reached(name))
    assert 3000 < lines <= LIMITS[name]


def test_on_demand_modules_are_followed_when_asked_for() -> None:
    recipe = RECIPES / "image_classification" / "recipe.py"
    eager, whole = closure(RECIPES.parent, [recipe]), closure(RECIPES.parent, [recipe], on_demand=True)
    extra = {file.relative_to(RECIPES.parent).as_posix() for file in set(whole) - set(eager)}
    assert {"common/images/hub_sources.py", "common/hub.py", "common/images/convert.py"} <= extra


def test_the_spine_is_small() -> None:
    assert len(list((RECIPES.parent / "common").glob("*.py"))) <= 18
