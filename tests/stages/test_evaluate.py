"""An evaluation's layout: the recipe's, as far as a model's experts can be spread over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.load import load_recipe
from megatron_bar.recipe.methods import stage_graph
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages import evaluate
from megatron_bar.stages.context import Context

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


@pytest.mark.parametrize("name, folder, experts, expected", [
    ("anchor", "anchor", None, Layout(4, tensor=2)),
    ("math", "math/rlvr", 2, Layout(4, tensor=2, expert=2)),
    ("routed", "routed", 5, Layout(4, tensor=2)),
])
def test_the_layout_fits_each_model(name, folder, experts, expected, tmp_path):
    model = PRESETS["toy"] if experts is None else PRESETS["toy"].with_experts(experts)
    (tmp_path / folder / "checkpoint").mkdir(parents=True)
    model.save(tmp_path / folder / "checkpoint")
    for override in ("evaluate.layout={processes: 4, tensor: 2, expert: 2}",
                     "layout={processes: 4, tensor: 2, expert: 2}"):
        recipe = load_recipe(TOY, [override])
        stage = next(s for s in stage_graph(recipe) if s.name == f"evaluate/{name}")
        assert stage.layout == Layout(4, tensor=2, expert=2)
        assert evaluate.layout(Context(recipe, tmp_path, stage)) == expected
