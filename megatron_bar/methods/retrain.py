"""retrain: the pretrained model, post-trained anew on the data of all domains at once.

Every parameter trains, and mid-training is left out; `retrain_midtrain` has it.
"""

from __future__ import annotations

from megatron_bar.methods import checks
from megatron_bar.methods.graph import Graph, Groups
from megatron_bar.recipe.names import ALL
from megatron_bar.recipe.schema import Recipe
from megatron_bar.stages.dpo import DpoStage
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.train import SftStage
from megatron_bar.stages.training_stage import EVERYTHING

GROUPS: Groups = {SftStage: EVERYTHING, DpoStage: EVERYTHING, RlvrStage: EVERYTHING}
MODEL = ALL
MADE = (
    "It is the pretrained base model, post-trained with every parameter on the data of all "
    "domains at once."
)


def stages(recipe: Recipe, groups: Groups = GROUPS) -> list[Stage]:
    """`groups` says which kinds of stages there are, and what they train."""
    graph = Graph(recipe)
    end = graph.adapt_all("pretrained", groups)
    return graph.finish({}, {ALL: end})


def check(recipe: Recipe, groups: Groups = GROUPS) -> None:
    checks.nothing_merged(recipe)
    checks.has_pretrained(recipe)
    checks.some_training(recipe, groups)
    checks.one_training(recipe, groups)
