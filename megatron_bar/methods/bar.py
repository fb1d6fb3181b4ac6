"""bar: branches with a frozen anchor, adapted one by one, merged, and a router over all."""

from __future__ import annotations

from megatron_bar.methods import checks
from megatron_bar.methods.graph import Graph, Groups
from megatron_bar.recipe.schema import Recipe
from megatron_bar.stages.dpo import DpoStage
from megatron_bar.stages.merge import MergeStage
from megatron_bar.stages.rlvr import RLVR_GROUPS, RlvrStage
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS, MidtrainStage, SftStage

GROUPS: Groups = {
    MidtrainStage: MIDTRAIN_GROUPS,
    SftStage: SFT_GROUPS,
    DpoStage: SFT_GROUPS,
    RlvrStage: RLVR_GROUPS,
}
MODEL = "routed"
MADE = (
    "Its domain experts were trained one at a time beside a frozen anchor, then merged, and a "
    "router over all of them (Branch-Adapt-Route, arXiv 2604.18473)."
)


def stages(recipe: Recipe, groups: Groups = GROUPS) -> list[Stage]:
    """`groups` says what a branch trains in each kind of stage, unless the recipe does."""
    graph = Graph(recipe)
    ends = {name: graph.adapt(name, graph.branch(name), groups) for name in recipe.domains}
    merged = graph.combine(MergeStage, ends)
    routed = graph.route(merged)
    return graph.finish(ends, {"merged": merged, "routed": routed})


def check(recipe: Recipe) -> None:
    checks.can_route(recipe)
    checks.shared_of_models(recipe)
