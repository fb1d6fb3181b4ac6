"""Run a recipe on this machine: only what is missing or stale, side by side where it can be."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_bar.launch import processes
from megatron_bar.launch.check import check_this_machine, check_works
from megatron_bar.launch.local_scheduler import LocalScheduler
from megatron_bar.launch.replacing import confirm_replacing
from megatron_bar.launch.reuse import take_over
from megatron_bar.launch.slurm.jobs import active_jobs
from megatron_bar.launch.stale import run_folder, stale_stages
from megatron_bar.launch.work import Work, work_of
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import save_recipe
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.console import say
from megatron_bar.runtime.devices import check_ranks
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.faults import Faults, require
from megatron_bar.runtime.locks import locked
from megatron_bar.runtime.stop_file import stop_file_in
from megatron_bar.stages.evaluate import EvaluateStage
from megatron_bar.stages.export_hf import MODEL_FOLDER, ExportStage
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.stage import Stage


def run_recipe(recipe: Recipe, jobs: int | None = None, yes: bool = False) -> Path:
    """Check the recipe, and run what it asks for and isn't there yet; returns the run's folder.

    `jobs` is how many processes may compute at once (by default as many as there are cores, and on
    GPUs as many as those). A stage that fails stops those that need it; the others go on. Where
    finished training would be replaced the user is asked, unless `yes`.

    Raises BarError before anything is written for a recipe that can't work, for training that the
    user doesn't want to be replaced, or if another `run` or a SLURM job is at work; StagesFailed,
    with messages and logs; and ContinueLater when a stop signal or a stop file came, at which the
    stages that run were asked to stop too.
    """
    (run,) = run_recipes([recipe], jobs, yes)
    return run


def run_recipes(
    recipes: Sequence[Recipe], jobs: int | None = None, yes: bool = False
) -> list[Path]:
    """Run them one after the other, as `run_recipe` does; all are checked before the first."""
    works = [work_of(recipe) for recipe in recipes]
    _check(works)
    confirm_replacing([loss for work in works for loss in work.lost], yes)
    return [run_checked(recipe, jobs) for recipe in recipes]


def show_work(recipes: Sequence[Recipe]) -> None:
    """Check recipes and tell what `run_recipes` would do; nothing is written.

    Raises BarError for a recipe that can't work.
    """
    works = [work_of(recipe) for recipe in recipes]
    _check(works)
    for work in works:
        _tell(work.run, work.stages, work.todo)
        for loss in work.lost:
            say(f"{work.run}: would be trained anew: {loss}")


def _check(works: Sequence[Work]) -> None:
    check_works(works)
    faults = Faults()
    for work in works:
        check_this_machine(work.todo, faults)
    for stage in (stage for work in works for stage in work.todo if stage.ON_GPU):
        with faults.of(stage.name):
            check_ranks(stage.layout.processes)
    require(list(faults))


def _tell(run: Path, stages: Sequence[Stage], todo: Sequence[Stage]) -> None:
    if todo:
        say(
            f"{run}: {len(todo)} of {len(stages)} stages to run: "
            f"{', '.join(stage.name for stage in todo)}"
        )
    else:
        say(f"{run}: nothing to do, all {len(stages)} stages are done")


def run_checked(recipe: Recipe, jobs: int | None = None) -> Path:
    """Run, as `run_recipe` does, a recipe that is checked already and replaces no training.

    Returns the run's folder. Raises as `run_recipe` does while it runs.
    """
    run = run_folder(recipe)
    run.mkdir(parents=True, exist_ok=True)
    with only_run(run):
        check_no_slurm_jobs(run)
        save_recipe(recipe, run / "recipe.yaml")
        stages = stage_graph(recipe)
        remove_stop_files(run, stages)
        take_over(stages, run, [Path(other) for other in recipe.reuse])
        todo = stale_stages(stages, run)
        _tell(run, stages, todo)
        if not todo:
            return run
        for stage in todo:
            if isinstance(stage, RlvrStage) and stage.preload is not None:
                processes.preload(stage.preload)
        LocalScheduler(run, todo, jobs).run_all()
    return run


def final_model(recipe: Recipe, run: Path) -> Path:
    """The model that the recipe was run for: a Hugging Face folder, if it exports one."""
    stages = stage_graph(recipe)
    if exports := [stage for stage in stages if isinstance(stage, ExportStage)]:
        return run / exports[0].name / MODEL_FOLDER
    last = [stage for stage in stages if isinstance(stage, EvaluateStage)][-1]
    return run / last.inputs["checkpoint"] / "checkpoint"


@contextlib.contextmanager
def only_run(run: Path) -> Iterator[None]:
    """One `run` at a time in a run's folder."""
    with locked(run / ".lock", f"another megatron-bar run is at work in {run}"):
        yield


def remove_stop_files(run: Path, stages: Sequence[Stage]) -> None:
    """Remove what an earlier execution was asked to stop by, and say so: this one is to go on."""
    for folder in (run, *(run / stage.name for stage in stages)):
        if path := stop_file_in(folder):
            path.unlink(missing_ok=True)
            say(f"{path} is removed, so that the run goes on")


def check_no_slurm_jobs(run: Path) -> None:
    """Raise BarError if `submit` has jobs at work, which write into the same folders.

    Where there is no SLURM there are none.
    """
    if shutil.which("squeue") is None:
        return
    if active := active_jobs(run):
        name, job = next(iter(active.items()))
        raise BarError(
            f"{run} has {len(active)} active SLURM jobs, such as {job.id} for {name}; "
            f"wait for them, or end them with megatron-bar cancel {run}"
        )
