"""Finished stages that are what a recipe asks for, taken over from where they are.

They are in other runs, or in the run's own RUN/replaced, where what is made anew is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_bar.runtime.console import say
from megatron_bar.runtime.files import link_tree, publish, staging_path
from megatron_bar.stages.context import REPLACED, is_done, remove_replaced, replaced_folder
from megatron_bar.stages.report import ReportStage
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.work.data import STORES


def is_run(folder: Path) -> bool:
    """Whether `folder` is that of a run, to take stages from."""
    return (folder / "recipe.yaml").is_file()


def donors(stages: Sequence[Stage], run: Path, others: Sequence[Path]) -> dict[str, Path]:
    """The folder to take each of `stages` from that `run` lacks, by the stage's name.

    That is RUN/replaced, else the first of `others` that has it.

    A stage is taken if it was made with the same settings from the same executions of its inputs,
    which `run` has, or which are taken before it.
    """
    found: dict[str, Path] = {}
    for stage in stages:
        # The report isn't all in its folder.
        if isinstance(stage, ReportStage) or is_done(stage, run, found):
            continue
        donor = next(
            (
                other
                for other in (run / REPLACED, *others)
                if is_done(stage, run, found | {stage.name: other})
            ),
            None,
        )
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
    for stage in stages:  # what a kill left there, or is back in its place
        if replaced_folder(run, stage.name).exists() and is_done(stage, run):
            remove_replaced(run, stage.name)
    for where in dict.fromkeys(taken.values()):
        names = [name for name, donor in taken.items() if donor == where]
        say(f"{run}: {len(names)} stages are taken over from {where}: {', '.join(names)}")
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
