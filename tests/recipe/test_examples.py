"""The recipes in examples/: each can be run as it stands, and each method has its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_bar.launch.check import check_recipe
from megatron_bar.methods import METHODS
from megatron_bar.methods.load import load_recipe, load_recipes
from megatron_bar.runtime.faults import wherever

EXAMPLES = Path(__file__).parents[2] / "examples"
ALL = sorted(EXAMPLES.rglob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_example_is_sound(path):
    """But for anchors, data and runs to reuse, which aren't at hand."""
    for recipe in load_recipes(path):
        faults = check_recipe(recipe, made=[Path(run) for run in recipe.reuse])
        assert wherever(faults) == []


@pytest.mark.slow
def test_every_method_has_an_example_which_is_its_row_in_the_comparison():
    rows = {recipe.name: recipe for recipe in load_recipes(EXAMPLES / "toy-compare.yaml")}
    for method in METHODS:
        own = load_recipe(EXAMPLES / "systems" / f"{method}.yaml")
        assert own.method == method and own.name == f"toy-{method}"
        row = rows[f"toy-compare/{method}"]
        assert dataclasses.replace(row, name=own.name, reuse=[]) == own
