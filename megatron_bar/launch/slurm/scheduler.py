"""SLURM's own commands, and what they say."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.runtime.errors import BarError

_ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
_ENDING = "COMPLETING"
_ENDING_SECONDS = 90


@dataclass(frozen=True)
class JobState:
    """The state of a job as SLURM tells it, and why it waits or how it ended."""

    state: str
    reason: str = ""
    elapsed: str = ""

    @property
    def active(self) -> bool:
        """Queued or running; it may still do its stage."""
        return self.state not in _ENDED and self.reason != "DependencyNeverSatisfied"


def _slurm(*command: str) -> str:
    """The output of one of SLURM's commands. Raises BarError with what it says if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise BarError(
            f"{command[0]} isn't here; submit from a login node of a SLURM cluster, or "
            "run the recipe on this machine with megatron-bar run"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise BarError(f"{command[0]}: {said}")
    return done.stdout


def submit_job(script: Path, after: Sequence[str], behind: str | None = None) -> str:
    """Queue a script to start once the jobs `after` have ended well; returns its job id.

    Nor does it before `behind`, another job, has ended, however that ends.
    """
    conditions = [f"afterok:{':'.join(after)}"] if after else []
    conditions += [f"afterany:{behind}"] if behind is not None else []
    dependency = [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"]
    answer = _slurm("sbatch", "--parsable", *(dependency if conditions else []), str(script))
    return answer.strip().split(";")[0]


def cancel_jobs(jobs: Sequence[str]) -> None:
    if jobs:
        _slurm("scancel", *jobs)


def job_states(jobs: Sequence[str]) -> dict[str, JobState]:
    """The state of each job that SLURM still knows: the queue first, then the accounting."""
    if not jobs:
        return {}
    states = {}
    for line in _slurm(
        "squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%r|%M"
    ).splitlines():
        job, state, reason, elapsed = line.strip().split("|", 3)
        if job in jobs:
            states[job] = JobState(state, "" if reason == "None" else reason, elapsed)
    forgotten = [job for job in jobs if job not in states]
    return states | (_accounted(forgotten) if forgotten else {})


def _accounted(jobs: Sequence[str]) -> dict[str, JobState]:
    """From sacct, which knows finished jobs for long, on clusters that keep accounts."""
    try:
        answer = _slurm(
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            f"--jobs={','.join(jobs)}",
            "--format=JobID,State,ExitCode,Elapsed",
        )
    except BarError:
        return {}
    states = {}
    for line in answer.splitlines():
        job, state, code, elapsed = line.split("|")
        # "CANCELLED by 1000"
        states[job] = JobState(state.split()[0], f"exit {code}", elapsed)
    return states


def settled_states(jobs: Sequence[str]) -> dict[str, JobState]:
    """States as `job_states` gives them, but jobs that are just ending are waited for.

    Their processes may still write; a new job mustn't meet them in a stage's folder.

    Raises BarError if one doesn't end.
    """
    deadline = time.monotonic() + _ENDING_SECONDS
    while True:
        states = job_states(jobs)
        ending = [job for job, state in states.items() if state.state == _ENDING]
        if not ending:
            return states
        if time.monotonic() > deadline:
            raise BarError(
                f"job {ending[0]} is ending, but doesn't; try again later, or see "
                f"scontrol show job {ending[0]}"
            )
        time.sleep(1)
