"""Needs and costs of each stage of a recipe."""

from __future__ import annotations

from megatron_bar.costs.machine import Machine
from megatron_bar.launch.check import stage_models
from megatron_bar.launch.starts import dense_model, dense_type
from megatron_bar.methods import stage_graph
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.plan import StagePlan


def planned_model(recipe: Recipe, name: str | None) -> ModelConfig:
    """The dense model: by preset, or as the recipe tells. Raises BarError if neither does."""
    if name is not None:
        if name not in PRESETS:
            raise BarError(f"--model {name}: unknown; there are {', '.join(PRESETS)}")
        return PRESETS[name]
    try:
        return dense_model(recipe)
    except BarError as error:
        raise BarError(f"{error}; or give --model with one of {', '.join(PRESETS)}") from None


def plan_stages(recipe: Recipe, model: ModelConfig, machine: Machine) -> list[StagePlan]:
    """A plan of every stage, in the graph's order.

    Raises BarError for a layout that can't hold its model and for unknown parameter groups.
    """
    models = stage_models(recipe, model)
    stored = dense_type(recipe)  # of all checkpoints of a run (`number_types`)
    return [stage.plan(models[stage.name], machine, stored) for stage in stage_graph(recipe)]
