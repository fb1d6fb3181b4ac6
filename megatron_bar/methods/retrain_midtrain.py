"""retrain_midtrain: the pretrained model, mid-trained and post-trained on all domains at once."""

from __future__ import annotations

from megatron_bar.methods import checks, retrain
from megatron_bar.methods.graph import DENSE_GROUPS
from megatron_bar.recipe.names import ALL
from megatron_bar.recipe.schema import Recipe
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.train import MidtrainStage

MODEL = ALL
MADE = (
    "It is the pretrained base model, mid-trained and post-trained with every parameter on "
    "the data of all domains at once."
)


def stages(recipe: Recipe) -> list[Stage]:
    return retrain.stages(recipe, DENSE_GROUPS)


def check(recipe: Recipe) -> None:
    checks.some_training(recipe, [MidtrainStage])
    retrain.check(recipe, DENSE_GROUPS)
