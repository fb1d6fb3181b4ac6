"""Stages that a run still has to do for a recipe, and which of them are trained already."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.launch.replacing import LostTraining, training_lost
from megatron_bar.launch.reuse import donors, is_run
from megatron_bar.launch.stale import run_folder, stale_stages
from megatron_bar.methods import stage_graph
from megatron_bar.recipe.schema import Recipe
from megatron_bar.stages.stage import Stage


@dataclass(frozen=True)
class Work:
    """A recipe's stages, and what of them is to be done."""

    recipe: Recipe
    run: Path
    stages: list[Stage]
    taken: dict[str, Path]  # stages to take over, and from where
    todo: list[Stage]
    lost: list[LostTraining]

    @property
    def names(self) -> list[str]:
        return [stage.name for stage in self.todo]


def work_of(recipe: Recipe, chosen: Collection[str] | None = None) -> Work:
    """The stages that `recipe` asks for and aren't there yet, of those in `chosen` or of all.

    Nothing is written, and folders to reuse that aren't runs are passed over.
    """
    run, stages = run_folder(recipe), stage_graph(recipe)
    taken = donors(stages, run, [other for other in map(Path, recipe.reuse) if is_run(other)])
    todo = [
        stage
        for stage in stale_stages(stages, run, taken)
        if chosen is None or stage.name in chosen
    ]
    lost = training_lost(stages, run, {*taken, *(stage.name for stage in todo)})
    return Work(recipe, run, stages, taken, todo, lost)
