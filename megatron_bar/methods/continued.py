"""continued: one dense model, the anchor, post-trained further with every parameter.

On all domains mixed, or on one after the other (`order`). As published, mid-training is left out.
"""

from __future__ import annotations

from megatron_bar.methods import checks
from megatron_bar.methods.graph import Graph, Groups
from megatron_bar.recipe.names import ALL
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.train import SftStage
from megatron_bar.stages.training_stage import EVERYTHING

GROUPS: Groups = {SftStage: EVERYTHING, RlvrStage: EVERYTHING}
MODEL = ALL
MADE = (
    "It is the post-trained base model, trained further with every parameter on the data of "
    "all domains."
)


def stages(recipe: Recipe) -> list[Stage]:
    graph = Graph(recipe)
    if recipe.order == "mixed":
        end = graph.adapt_all("anchor", GROUPS)
        return graph.finish({}, {ALL: end})
    ends, end = {}, "anchor"
    for name in recipe.domains:
        ends[name] = end = graph.adapt(name, end, GROUPS)
    return graph.finish(ends, {ALL: end})


def check(recipe: Recipe) -> None:
    checks.nothing_merged(recipe)
    checks.some_training(recipe, GROUPS)
    if recipe.order not in ("mixed", "sequence"):
        raise BarError(f"order {recipe.order!r} is not mixed or sequence")
    if recipe.order == "mixed":
        checks.one_training(recipe, GROUPS)
