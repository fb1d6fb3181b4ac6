"""retrain: the pretrained model, post-trained anew on the data of all domains at once.

Every parameter trains, and mid-training is left out; `retrain_midtrain` has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_bar.recipe.graph import ALL, EVERYTHING, Graph, Stage
from megatron_bar.recipe.methods import checks
from megatron_bar.recipe.schema import Recipe

GROUPS = {"sft": EVERYTHING, "rlvr": EVERYTHING}
MODEL = ALL
MADE = ("It is the pretrained base model, post-trained with every parameter on the data of all "
        "domains at once.")


def stages(recipe: Recipe, groups: Mapping[str, Sequence[str]] = GROUPS) -> list[Stage]:
    """`groups` says which kinds of stages there are, and what they train."""
    graph = Graph(recipe)
    end = graph.adapt_all("pretrained", groups)
    return graph.finish({}, {ALL: end})


def check(recipe: Recipe, groups: Mapping[str, Sequence[str]] = GROUPS) -> None:
    checks.nothing_merged(recipe)
    checks.has_pretrained(recipe)
    checks.some_training(recipe, groups)
    checks.one_training(recipe, groups)
