"""Stages of a run that are not what its recipe asks for. Loads nothing that computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_bar.recipe.schema import Recipe
from megatron_bar.stages.context import is_done
from megatron_bar.stages.stage import Stage


def run_folder(recipe: Recipe) -> Path:
    return Path(recipe.runs) / recipe.name


def stale_stages(
    stages: Sequence[Stage], run: Path, elsewhere: Mapping[str, Path] | None = None
) -> list[Stage]:
    """Stages to run: not done, done with other settings or inputs, or downstream of such a one.

    Stages that are named in `elsewhere` stand in that run instead.
    """
    stale: dict[str, Stage] = {}
    for stage in stages:
        upstream = any(name in stale for name in stage.inputs.values())
        if upstream or not is_done(stage, run, elsewhere):
            stale[stage.name] = stage
    return list(stale.values())
