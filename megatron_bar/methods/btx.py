"""btx: a dense model a domain, trained with every parameter; their FFNs become experts.

Branch-Train-MiX (arXiv 2403.07816) as BAR is compared with it: the anchor's FFN is expert 0, all
experts are active, the router starts at random rows and is all that trains after the merge. Shared
parameters are averaged, or taken from one model (`merge.shared`).
"""

from __future__ import annotations

from megatron_bar.methods import checks
from megatron_bar.methods.graph import DENSE_GROUPS, Graph
from megatron_bar.recipe.schema import Recipe
from megatron_bar.stages.merge import StackStage
from megatron_bar.stages.stage import Stage

MODEL = "routed"
MADE = (
    "Its domain experts are the FFNs of dense models, each trained with every parameter on one "
    "domain; a router over all of them was trained afterwards (Branch-Train-MiX, "
    "arXiv 2403.07816)."
)


def stages(recipe: Recipe) -> list[Stage]:
    graph = Graph(recipe)
    ends = {name: graph.adapt(name, "anchor", DENSE_GROUPS) for name in recipe.domains}
    merged = graph.combine(StackStage, ends, seed=recipe.seed)
    routed = graph.route(merged)
    return graph.finish(ends, {"merged": merged, "routed": routed})


def check(recipe: Recipe) -> None:
    checks.can_route(recipe)
    checks.shared_of_models(recipe)
