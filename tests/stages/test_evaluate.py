"""An evaluation's layout: the recipe's, as far as a model's experts can be spread over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_bar.methods import context_of
from megatron_bar.methods.load import load_recipe
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.layout import Layout

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, folder, experts, expected",
    [
        ("anchor", "anchor", None, Layout(4, tensor=2)),
        ("math", "math/rlvr", 2, Layout(4, tensor=2, expert=2)),
        ("routed", "routed", 5, Layout(4, tensor=2)),
    ],
)
def test_the_layout_fits_each_model(name, folder, experts, expected, tmp_path):
    model = PRESETS["toy"] if experts is None else PRESETS["toy"].with_experts(experts)
    (tmp_path / folder / "checkpoint").mkdir(parents=True)
    model.save(tmp_path / folder / "checkpoint")
    for override in (
        "evaluate.layout={processes: 4, tensor: 2, expert: 2}",
        "layout={processes: 4, tensor: 2, expert: 2}",
    ):
        recipe = load_recipe(TOY, [override])
        context = context_of(recipe, tmp_path, f"evaluate/{name}")
        assert context.stage.layout == Layout(4, tensor=2, expert=2)
        assert context.stage.fitted(context).layout == expected
