"""Stages of a run that are not what its recipe asks for. Loads nothing that computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import is_done
from megatron_bar.stages.stage import Stage


def run_folder(recipe: Recipe) -> Path:
    return Path(recipe.runs) / recipe.name


def check_in_place(recipe_file: Path, recipes: Sequence[Recipe], overrides: Sequence[str]) -> None:
    """Raise BarError if `recipe_file` is that of a run whose folder was renamed or moved.

    All would be made anew under the old name. Overrides that say where the run lies are obeyed.
    """
    here = Path(recipe_file).resolve()
    said = any(word.startswith(("name=", "runs=")) for word in overrides)
    if said or here.name != "recipe.yaml" or not (here.parent / ".lock").exists():
        return
    for recipe in recipes:
        if not run_folder(recipe).exists():
            words = len(Path(recipe.name).parts)  # two of one of several systems
            name = Path(*here.parent.parts[-words:])
            raise BarError(
                f"{recipe_file} is of the run {run_folder(recipe)}, which isn't there; to go on "
                f"with what lies beside it give name={name} runs={here.parents[words]}, or move "
                "the folder back"
            )


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
