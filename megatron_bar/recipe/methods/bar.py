"""bar: branches with a frozen anchor, adapted one by one, merged, and a router over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_bar.recipe.graph import MIDTRAIN_GROUPS, RLVR_GROUPS, SFT_GROUPS, Graph, Stage
from megatron_bar.recipe.methods import checks
from megatron_bar.recipe.schema import Recipe

GROUPS = {"midtrain": MIDTRAIN_GROUPS, "sft": SFT_GROUPS, "rlvr": RLVR_GROUPS}
MODEL = "routed"
MADE = ("Its domain experts were trained one at a time beside a frozen anchor, then merged, and a "
        "router over all of them (Branch-Adapt-Route, arXiv 2604.18473).")


def stages(recipe: Recipe, groups: Mapping[str, Sequence[str]] = GROUPS) -> list[Stage]:
    """`groups` says what a branch trains in each kind of stage, unless the recipe does."""
    graph = Graph(recipe)
    ends = {name: graph.adapt(name, graph.branch(name), groups) for name in recipe.domains}
    merged = graph.combine("merge", ends)
    routed = graph.route(merged)
    return graph.finish(ends, {"merged": merged, "routed": routed})


def check(recipe: Recipe) -> None:
    checks.can_route(recipe)
    checks.shared_of_models(recipe)
