"""continued: one dense model, the anchor, post-trained further with every parameter.

On all domains mixed, or on one after the other (`order`). As published, mid-training is left out.
"""

from __future__ import annotations

from megatron_bar.recipe.graph import ALL, EVERYTHING, Graph, Stage
from megatron_bar.recipe.methods import checks
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError

GROUPS = {"sft": EVERYTHING, "rlvr": EVERYTHING}
MODEL = ALL
MADE = ("It is the post-trained base model, trained further with every parameter on the data of "
        "all domains.")


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
