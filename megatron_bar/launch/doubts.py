"""Requests of a recipe that are rarely meant: told before a run, and refused nowhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from megatron_bar.data.chat_format import chat_template, template_warning
from megatron_bar.launch.starts import start_tokenizer
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.fields import TEXTS
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.training_stage import TrainingStage


def doubts(recipe: Recipe, stages: Iterable[Stage], models: Mapping[str, ModelConfig]) -> list[str]:
    """A line for each of a recipe's doubtful requests, as far as its `stages` go.

    These are rows longer than the model knows positions, and a chat format that isn't the model's
    own. `models` are those of the stages, by name.
    """
    trained = [stage for stage in stages if isinstance(stage, TrainingStage)]
    lines = [
        f"{stage.name}: {warning}"
        for stage in trained
        if (warning := stage.length_warning(models[stage.name]))
    ]
    return lines + _of_template(recipe, trained)


def _of_template(recipe: Recipe, trained: Collection[Stage]) -> list[str]:
    if recipe.chat_template is None or all(stage.FORM == TEXTS for stage in trained):
        return []
    try:
        tokenizer = start_tokenizer(recipe)
        template = chat_template(recipe.chat_template, tokenizer)
    except BarError:
        return []  # a fault, or not on this machine: told as that
    warning = template_warning(recipe.chat_template, template, tokenizer)
    return [] if warning is None else [warning]
