"""Run a recipe on this machine: only what is missing or stale, side by side where it can be."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.launch import processes
from megatron_bar.launch.check import check_works
from megatron_bar.launch.logs import log_path
from megatron_bar.launch.processes import Job, JobFailed
from megatron_bar.launch.replacing import confirm_replacing
from megatron_bar.launch.reuse import take_over
from megatron_bar.launch.slurm.jobs import active_jobs
from megatron_bar.launch.stale import run_folder, stale_stages
from megatron_bar.launch.work import work_of
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import save_recipe
from megatron_bar.methods.run import run_stage
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.console import progress, say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.pool import cores
from megatron_bar.runtime.stop_file import stop_file_in
from megatron_bar.runtime.stopping import ContinueLater, StopSignals
from megatron_bar.stages.context import read_done, replaced_folder
from megatron_bar.stages.evaluate import EvaluateStage
from megatron_bar.stages.export_hf import MODEL_FOLDER, ExportStage
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.stage import Stage


class StagesFailed(BarError):
    """Some stages of a run failed; `failures` has a line for each."""

    def __init__(self, failures: Sequence[str]) -> None:
        super().__init__("; ".join(failures))
        self.failures = list(failures)


@dataclass
class _Running:
    stage: Stage
    job: Job
    started: float


def run_recipe(recipe: Recipe, jobs: int | None = None, yes: bool = False) -> Path:
    """Check the recipe, and run what it asks for and isn't there yet; returns the run's folder.

    `jobs` is how many processes may compute at once (the machine's cores by default). A stage that
    fails stops those that need it; the others go on. Where finished training would be replaced the
    user is asked, unless `yes`.

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
    check_works(works)
    confirm_replacing([loss for work in works for loss in work.lost], yes)
    return [run_checked(recipe, jobs) for recipe in recipes]


def show_work(recipes: Sequence[Recipe]) -> None:
    """Check recipes and tell what `run_recipes` would do; nothing is written.

    Raises BarError for a recipe that can't work.
    """
    works = [work_of(recipe) for recipe in recipes]
    check_works(works)
    for work in works:
        _tell(work.run, work.stages, work.todo)
        for loss in work.lost:
            say(f"{work.run}: would be trained anew: {loss}")


def _tell(run: Path, stages: Sequence[Stage], todo: Sequence[Stage]) -> None:
    if todo:
        say(f"{run}: {len(todo)} of {len(stages)} stages to run: "
            f"{', '.join(stage.name for stage in todo)}")
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
        _Scheduler(run, todo, jobs or cores()).run_all()
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
    with open(run / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BarError(f"another megatron-bar run is at work in {run}") from None
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
        raise BarError(f"{run} has {len(active)} active SLURM jobs, such as {job.id} for {name}; "
                       f"wait for them, or end them with megatron-bar cancel {run}")


class _Scheduler:
    """Starts each stage as soon as its inputs are done and enough processes are free."""

    def __init__(self, run: Path, stages: list[Stage], slots: int) -> None:
        self.run = run
        self.waiting = list(stages)
        self.slots = slots
        self.running: list[_Running] = []
        self.failed: list[str] = []
        self.stopped: list[str] = []
        self.asked = False  # to stop, all of it

    def run_all(self) -> None:
        try:
            with progress("stages", len(self.waiting)) as advance, StopSignals() as signals:
                while self.waiting or self.running:
                    self._pass_on(signals.received)
                    while stage := self._startable():
                        self._start(stage)
                    for _ in self._ended():
                        advance(note=" ".join(r.stage.name for r in self.running))
                    time.sleep(processes.POLL_SECONDS)
        finally:
            for running in self.running:
                running.job.stop()
        if self.failed:
            raise StagesFailed(self.failed)
        if self.stopped or self.asked:
            raise ContinueLater(f"{self.run}: {', '.join(self.stopped) or 'no stage'} was stopped")

    def _pass_on(self, number: int | None) -> None:
        """Let what runs save and end where it is to stop, by a signal or a stop file.

        If that is for the whole run, nothing more is started.
        """
        if number is not None or stop_file_in(self.run):
            self.asked = True
            self.waiting.clear()
        for running in self.running:
            if running.job.asked_to_stop:
                continue
            if self.asked or stop_file_in(self.run / running.stage.name):
                say(f"{running.stage.name}: asked to save and stop; Ctrl-C ends it at once")
                running.job.ask_to_stop(number or signal.SIGUSR1)

    def _startable(self) -> Stage | None:
        """The first stage whose inputs are done and whose processes fit beside those that run.

        One with more processes than there are slots runs alone.
        """
        unfinished = {s.name for s in self.waiting} | {r.stage.name for r in self.running}
        busy = sum(r.stage.layout.processes for r in self.running)
        for stage in self.waiting:
            size = stage.layout.processes
            fits = busy + size <= self.slots or not self.running
            if fits and not unfinished & set(stage.inputs.values()):
                return stage
        return None

    def _start(self, stage: Stage) -> None:
        self.waiting.remove(stage)
        log = log_path(self.run, stage.name)
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        job = processes.start(
            run_stage, self.run, stage.name, processes=stage.layout.processes, log=log
        )
        self.running.append(_Running(stage, job, time.monotonic()))

    def _ended(self) -> Iterator[_Running]:
        for running in list(self.running):
            if outcome := self._outcome(running):
                self.running.remove(running)
                say(f"{running.stage.name}: {outcome}")
                yield running

    def _outcome(self, running: _Running) -> str | None:
        """What became of a stage, in words for the user, and noted; None while it runs."""
        name = running.stage.name
        try:
            if not running.job.poll():
                return None
        except ContinueLater:
            self.stopped.append(name)
            self._drop_dependents(name)
            return "stopped, to go on later"
        except JobFailed as error:
            self.failed.append(f"stage {name}: {error} (log: {log_path(self.run, name)})")
            self._drop_dependents(name)
            kept = replaced_folder(self.run, name)
            return "failed" + (
                f"; its last result is kept in {kept}, and back with the settings it was made with"
                if kept.is_dir() else "")
        seconds = time.monotonic() - running.started
        summary = read_done(self.run / name).get("summary", "")
        return f"done in {seconds:.0f} s{summary and ' - '}{summary}"

    def _drop_dependents(self, undone: str) -> None:
        dropped = {undone}
        for stage in list(self.waiting):  # in the graph's order, so one pass finds all
            if dropped & set(stage.inputs.values()):
                dropped.add(stage.name)
                self.waiting.remove(stage)
