"""The state of a run, submitted or not, and how to end a submitted one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.table import Table

from megatron_bar.launch.logs import log_path
from megatron_bar.launch.slurm.attempts import read_attempts
from megatron_bar.launch.slurm.jobs import Job, active_jobs, read_jobs
from megatron_bar.launch.slurm.scheduler import JobState, cancel_jobs, job_states
from megatron_bar.launch.slurm.script import REHEARSAL, Rehearsal
from megatron_bar.launch.stale import stale_stages
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.runtime.console import read_progress
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.at_work import begun_at
from megatron_bar.stages.context import read_begun, read_done, replaced_folder
from megatron_bar.stages.stage import Stage
from megatron_bar.training.metrics import read_metrics

_LOG_TAIL_BYTES = 1 << 16


class Phase(Enum):
    """The progress of a stage, in a word."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    WAITING = "waiting"  # for what it needs, or for somebody who runs it
    STOPPED = "stopped"  # it began, and isn't done


@dataclass(frozen=True)
class StageStatus:
    """One line of the table."""

    stage: str
    phase: Phase
    job: str
    state: str
    progress: str
    seconds_left: float | None  # None where nothing tells
    log: str  # its path in the run's folder


def stage_statuses(run: Path) -> list[StageStatus]:
    """Every stage of the run's recipe, from its files and from SLURM.

    Raises BarError if `run` is no run's folder.
    """
    stages = _stages(run)
    jobs = read_jobs(run)
    states = job_states([job.id for job in jobs.values()])
    stale = {stage.name for stage in stale_stages(stages, run)}
    if REHEARSAL in jobs:
        stages.insert(0, Rehearsal(REHEARSAL))
    return [
        _status(run, stage, stage.name in stale, jobs.get(stage.name), states) for stage in stages
    ]


def status_table(statuses: Sequence[StageStatus]) -> Table:
    table = Table("stage", "job", "state", "progress", "left", "log", box=None)
    for status in statuses:
        left = "" if status.seconds_left is None else _duration(status.seconds_left)
        table.add_row(status.stage, status.job, status.state, status.progress, left, status.log)
    return table


def cancel(run: Path, only: Sequence[str] = ()) -> list[str]:
    """Cancel the run's jobs that haven't ended; returns their stages.

    `only` confines it to stages, domains or patterns. Jobs that need a cancelled one are cancelled
    by SLURM; the others go on.

    Raises BarError if `run` is no run's folder or a word of `only` fits no stage.
    """
    from megatron_bar.launch.slurm.submit import matching_stages  # loads all that a run needs

    stages = _stages(run)
    names = matching_stages(stages, only) if only else {REHEARSAL, *(s.name for s in stages)}
    ending = {name: job for name, job in active_jobs(run, settled=False).items() if name in names}
    cancel_jobs([job.id for job in ending.values()])
    return list(ending)


def _stages(run: Path) -> list[Stage]:
    if not (run / "recipe.yaml").is_file():
        raise BarError(f"{run} is not a run's folder: it has no recipe.yaml")
    return stage_graph(load_recipe(run / "recipe.yaml"))


def _status(
    run: Path, stage: Stage, stale: bool, job: Job | None, states: dict[str, JobState]
) -> StageStatus:
    done = read_done(run / stage.name)
    state = states.get(job.id) if job else None
    log = log_path(run, stage.name)
    progress, left, phase = "", None, Phase.WAITING
    attempts = read_attempts(run, stage.name, job.id) if job else []
    if done and not stale:
        phase, progress = Phase.DONE, done.get("summary", "")
        said = f"done in {done['seconds']:.0f} s"
    elif job is not None and state is not None and state.active:
        phase = Phase.RUNNING if state.state == "RUNNING" else Phase.QUEUED
        said = state.state.lower() + (f" ({state.reason})" if state.reason else "")
        if len(attempts) > 1:
            said += f", attempt {len(attempts)}"
        if attempts:
            progress, left = _progress(run, stage, log)
    elif begun_at(run, stage.name) is not None:
        phase, said = Phase.RUNNING, "running"
        progress, left = _progress(run, stage, log)
    elif state is not None:
        phase, said = Phase.STOPPED, f"{state.state.lower()} ({state.reason})"
    elif job is not None:
        phase = Phase.STOPPED
        said = "ended" if isinstance(stage, Rehearsal) else "ended, not done"
    elif done:
        said = "stale"
    elif read_begun(run / stage.name) is not None:
        phase, said = Phase.STOPPED, "ended, not done"
    else:
        said = "not begun"
    if not done and attempts and (failure := attempts[-1].get("failure")):
        progress = failure
    if not done and (kept := replaced_folder(run, stage.name)).is_dir():
        progress = progress or f"its last result is in {kept.relative_to(run)}"
    return StageStatus(
        stage.name,
        phase,
        job.id if job else "",
        said,
        progress,
        left,
        str(log.relative_to(run)) if log.exists() else "",
    )


def _progress(run: Path, stage: Stage, log: Path) -> tuple[str, float | None]:
    """How far a stage is, and how many seconds it still takes by its own reckoning."""
    metrics = read_metrics(run / stage.name)
    loss = f"loss {metrics[-1]['loss']:.3f}" if metrics else ""
    tail = b""
    if log.is_file():
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            tail = file.read()
    last = read_progress(tail.decode(errors="replace"))
    if last is None:
        return (f"step {metrics[-1]['step']}, {loss}" if metrics else ""), None
    age = time.time() - log.stat().st_mtime
    left = max(0.0, last.seconds_left - age)
    return f"{last.what} {last.done}/{last.total} {loss}".strip(), left


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
