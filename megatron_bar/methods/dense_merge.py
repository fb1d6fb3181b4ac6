"""dense_merge: a dense model a domain, trained with every parameter; one mean of their weights.

The anchor counts as one of the models unless `merge.shared` is `branches`, or a rule combines their
changes from it. Without mid-training: a recipe whose domains have none.
"""

from __future__ import annotations

from megatron_bar.methods import checks
from megatron_bar.methods.graph import DENSE_GROUPS, Graph
from megatron_bar.recipe.names import MERGE_RULES
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.merge import AverageStage
from megatron_bar.stages.stage import Stage

MODEL = "merged"
MADE = "It is the mean of dense models, each trained with every parameter on one domain."


def stages(recipe: Recipe) -> list[Stage]:
    graph = Graph(recipe)
    ends = {name: graph.adapt(name, "anchor", DENSE_GROUPS) for name in recipe.domains}
    merged = graph.combine(AverageStage, ends)
    return graph.finish(ends, {"merged": merged})


def check(recipe: Recipe) -> None:
    rules = [rule for rule in MERGE_RULES if rule != "fisher"]  # which is for what is shared
    known = ("published", "branches", *rules)
    if recipe.merge.shared not in known:
        raise BarError(
            f"merge.shared {recipe.merge.shared!r}: method dense_merge averages all "
            f"weights; give one of {', '.join(known)}"
        )
    checks.rule_settings(recipe)
