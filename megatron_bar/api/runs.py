"""Whole recipes: read, or made in Python; run on this machine; looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_bar.analysis.scores import evaluated
from megatron_bar.api.checkpoints import StrPath
from megatron_bar.launch.local import final_model, run_recipes
from megatron_bar.methods import load as recipes
from megatron_bar.recipe.schema import Recipe


@dataclass(frozen=True)
class Run:
    """A recipe that was run. Its stages' checkpoints are `folder`/STAGE/checkpoint."""

    recipe: Recipe
    folder: Path

    @property
    def model(self) -> Path:
        """The model that it was run for: a Hugging Face folder if it exports one.

        Else it is a checkpoint.
        """
        return final_model(self.recipe, self.folder)

    @property
    def report(self) -> Path:
        """The page of what it amounts to."""
        return self.folder / "report.html"

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Results of every evaluated model, by its name; empty where nothing was asked."""
        return evaluated(self.folder)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """The mean score of each model in each task."""
        return {
            model: {task: result["score"] for task, result in found["tasks"].items()}
            for model, found in self.results.items()
        }


def load_recipe(path: StrPath, *overrides: str) -> Recipe:
    """The recipe in a YAML file, with `key=value` words in place of its own values.

    Raises BarError, with a line for each fault.
    """
    return recipes.load_recipe(Path(path), overrides)


def run(
    recipe: Recipe | StrPath,
    overrides: Sequence[str] = (),
    *,
    jobs: int | None = None,
    replace: bool = False,
) -> Run:
    """Run a recipe on this machine: what is missing or stale of its stages, side by side.

    `recipe` is one that was made or read, or a YAML file's path; `overrides` are `key=value` words.
    `jobs` is how many processes may compute at once, by default the machine's cores. Hours of
    training are replaced with `replace` alone.

    Raises BarError for a recipe that can't work, before anything is written, and for stages that
    fail; ContinueLater when it was interrupted: the same call goes on.
    """
    if isinstance(recipe, Recipe):
        recipe = recipes.settled_recipe(recipe, overrides)
    else:
        recipe = recipes.load_recipe(Path(os.fspath(recipe)), overrides, values=False)
    (ran,) = run_all([recipe], jobs, replace)
    return ran


def run_all(loaded: Sequence[Recipe], jobs: int | None = None, replace: bool = False) -> list[Run]:
    """Run recipes one after the other, as `run` does; all are checked before the first."""
    folders = run_recipes(loaded, jobs, replace)
    return [Run(recipe, folder) for recipe, folder in zip(loaded, folders)]
