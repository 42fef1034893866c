"""Recipes: the shipped ones are sound, run in order, and bad ones are refused by field."""

import msgspec
import pytest
import yaml

from calibration.recipes import Recipe, in_order, load_recipe, shipped_recipes
from moesim.errors import InputError
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import PARAMETER_NAMES, list_parameter_sets

PLAIN = {
    "name": "one",
    "base": "prior-nvidia",
    "engine": "vllm",
    "accelerators": ["a100-80gb"],
    "free": ["kernel_s"],
    "sites": {"here": ["host_launch_s"]},
    "outputs": {"set": {"accelerators": ["a100-80gb"], "sites": ["here"]}},
}


def write(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**PLAIN, **changes}))
    return path


def test_shipped_recipes_come_after_what_they_build_on():
    recipes = shipped_recipes()
    made = set(list_parameter_sets()) - {name for recipe in recipes for name in recipe.outputs}
    for recipe in recipes:
        assert recipe.base in made, f"{recipe.name} starts from {recipe.base}, which nothing before it makes"
        made |= set(recipe.outputs)


def test_shipped_recipes_name_what_exists():
    outputs = [name for recipe in shipped_recipes() for name in recipe.outputs]
    assert len(outputs) == len(set(outputs))
    for recipe in shipped_recipes():
        assert recipe.runs or recipe.kernels
        for output in recipe.outputs.values():
            for name in output.accelerators:
                assert get_hardware(name).vendor == list_parameter_sets()[_root(recipe)].vendor
        for key in recipe.prior_log_sd:
            assert key.partition("@")[0] in PARAMETER_NAMES, f"{recipe.name}: prior_log_sd of unknown {key}"
        if recipe.transfer_from:
            assert recipe.transfer_from in outputs


def _root(recipe):
    by_output = {name: other for other in shipped_recipes() for name in other.outputs}
    while recipe.base in by_output:
        recipe = by_output[recipe.base]
    return recipe.base


def test_columns_are_general_ones_and_those_of_the_sites_that_are_there():
    recipe = msgspec.convert({**PLAIN, "sites": {"*": ["host_launch_s"], "far": ["host_launch_s", "kernel_s"]}}, Recipe)
    keys = [column.key for column in recipe.columns(["near", "far", "", "near"])]
    assert keys == ["kernel_s", "host_launch_s@far", "kernel_s@far", "host_launch_s@near"]
    assert [column.key for column in recipe.columns([])] == ["kernel_s"]


def test_recipes_that_wait_for_each_other_are_refused():
    one = msgspec.convert({**PLAIN, "after": ["two"]}, Recipe)
    two = msgspec.convert({**PLAIN, "name": "two", "after": ["one"]}, Recipe)
    three = msgspec.convert({**PLAIN, "name": "three"}, Recipe)
    assert [recipe.name for recipe in in_order([msgspec.structs.replace(one, after=("three",)), three])] == [
        "three",
        "one",
    ]
    with pytest.raises(InputError, match="one, two"):
        in_order([one, two, three])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"free": ["kernel_z"]}, "free: unknown constant 'kernel_z'.*kernel_s"),
        ({"sites": {"here": ["host_lunch_s"]}}, "sites.here: unknown constant 'host_lunch_s'.*host_launch_s"),
        ({"outputs": {"set": {"accelerators": ["h100"], "sites": ["her"]}}}, "outputs.set: unknown site 'her'.*here"),
        ({"shape": 1}, "shape"),
        ({"accelerators": "a100-80gb"}, "accelerators"),
        ({"prior_log_sd": {"kernel_s": "wide"}}, "prior_log_sd"),
    ],
)
def test_bad_recipes_name_field_and_fix(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(path)
    assert "recipe.yaml" in str(caught.value)


def test_a_good_recipe_loads(tmp_path):
    assert load_recipe(write(tmp_path)).outputs["set"].sites == ("here",)
