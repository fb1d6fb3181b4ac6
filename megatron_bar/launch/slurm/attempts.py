"""Attempts of a job to do its stage, and whether they led anywhere."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from megatron_bar.runtime.errors import BarError
from megatron_bar.training.saved import saved_steps

# A job that begins this often at the same step in a row has made no progress twice.
_BEGINNINGS_WITHOUT_PROGRESS = 3


def attempts_path(run: Path, stage: str) -> Path:
    """Outside the stage's folder, which is emptied when it starts anew."""
    return run / "slurm" / f"{stage.replace('/', '-')}.attempts.jsonl"


def read_attempts(run: Path, stage: str, job: str) -> list[dict]:
    """All attempts of one job at a stage, the oldest first."""
    path = attempts_path(run, stage)
    lines = path.read_text().splitlines() if path.is_file() else []
    return [entry for entry in map(json.loads, lines) if entry["job"] == job]


def begin_attempt(run: Path, stage: str) -> None:
    """Note, on a job's first node, the step at which this attempt begins; refuse a vain one.

    Called on every node. It doesn't matter how earlier attempts ended: saved at the time limit,
    preempted, with a lost node. What counts is that the next begins at a later step.

    Raises BarError if two attempts in a row made no progress.
    """
    job = os.environ["SLURM_JOB_ID"]
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    step = max(saved_steps(run / stage), default=0)
    earlier = [e for e in read_attempts(run, stage, job) if e["restart"] < restart]
    begun_at = [entry["step"] for entry in earlier] + [step]
    last = begun_at[-_BEGINNINGS_WITHOUT_PROGRESS:]
    if len(last) == _BEGINNINGS_WITHOUT_PROGRESS and len(set(last)) == 1:
        raise BarError(
            f"{stage}: two attempts in a row made no progress, both began at step {step} and so "
            "would this one; look above for why they ended, raise the time limit or lower "
            "save_every, then submit again"
        )
    if os.environ.get("SLURM_NODEID", "0") == "0":
        with open(attempts_path(run, stage), "a") as file:
            file.write(
                json.dumps({"job": job, "restart": restart, "step": step, "began": time.time()})
                + "\n"
            )
