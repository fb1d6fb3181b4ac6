"""Jobs of the stages: `slurm/jobs.json` in the run's folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.launch.slurm.scheduler import job_states, settled_states
from megatron_bar.runtime.files import read_json, write_json


@dataclass(frozen=True)
class Job:
    """The last job that was submitted for a stage."""

    id: str
    identity: str  # of the stage, when it was submitted
    submitted: float  # seconds since the epoch


def _path(run: Path) -> Path:
    return run / "slurm" / "jobs.json"


def read_jobs(run: Path) -> dict[str, Job]:
    """The jobs of a run, by stage."""
    path = _path(run)
    return {name: Job(**job) for name, job in read_json(path).items()} if path.is_file() else {}


def write_jobs(run: Path, jobs: dict[str, Job]) -> None:
    write_json(_path(run), {name: dataclasses.asdict(job) for name, job in jobs.items()})


def active_jobs(run: Path, settled: bool = True) -> dict[str, Job]:
    """Jobs that are queued or running, by stage; jobs that are just ending are waited for.

    If not `settled` they aren't, and count as active. Raises BarError if SLURM doesn't answer.
    """
    jobs = read_jobs(run)
    ask = settled_states if settled else job_states
    states = ask([job.id for job in jobs.values()])
    return {
        name: job
        for name, job in jobs.items()
        if (state := states.get(job.id)) is not None and state.active
    }
