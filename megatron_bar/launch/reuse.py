"""Finished stages of other runs, taken over where they are what a recipe asks for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_bar.recipe.graph import Stage
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import link_tree, publish, staging_path
from megatron_bar.stages.context import is_done
from megatron_bar.stages.data import STORES


def reused_runs(recipe: Recipe) -> list[Path]:
    """The runs that `recipe` may take stages from. Raises BarError if there is none in a folder."""
    for other in map(Path, recipe.reuse):
        if not (other / "recipe.yaml").is_file():
            raise BarError(f"reuse: {other} is not the folder of a run")
    return [Path(other) for other in recipe.reuse]


def donors(stages: Sequence[Stage], run: Path, others: Sequence[Path]) -> dict[str, Path]:
    """By the name of each of `stages` that `run` lacks, the first of `others` to take it from.

    A stage is taken if it was made with the same settings from the same executions of its inputs,
    which `run` has, or which are taken before it.
    """
    found: dict[str, Path] = {}
    for stage in stages:
        # The report isn't all in its folder.
        if stage.kind == "report" or is_done(stage, run, found):
            continue
        donor = next((other for other in others
                      if is_done(stage, run, found | {stage.name: other})), None)
        if donor is not None:
            found[stage.name] = donor
    return found


def take_over(stages: Sequence[Stage], run: Path, others: Sequence[Path]) -> list[str]:
    """Give `run` the stages that have `donors`; returns their names.

    Files are hard links where the disk allows it: runs never change a file of a stage that is done,
    they replace it. Tokenized data comes along.
    """
    for other in others:
        _share_data(other, run)
    taken = donors(stages, run, others)
    for name, donor in taken.items():
        _copy(donor / name, run / name)
    if taken:
        say(f"{run}: {len(taken)} stages are taken over: {', '.join(taken)}")
    return list(taken)


def _share_data(other: Path, run: Path) -> None:
    for store in (folder for root in STORES for folder in other.glob(f"data/{root}/*")):
        target = run / store.relative_to(other)
        if not store.name.startswith(".") and not target.exists():
            _copy(store, target)


def _copy(source: Path, target: Path) -> None:
    staging = staging_path(target)
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    link_tree(source, staging)
    publish(staging, target)
