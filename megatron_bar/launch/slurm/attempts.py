"""Attempts of a job to do its stage, and whether they led anywhere."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from megatron_bar.launch.slurm.failed_nodes import left_out
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json_lines
from megatron_bar.training.saved import saved_steps

# A job that begins this often at the same step in a row has made no progress twice.
_BEGINNINGS_WITHOUT_PROGRESS = 3
# ... and this often, though nodes were left out on the way, isn't held up by nodes: a process that
# needs more memory than there is is killed on each.
_BEGINNINGS_AT_MOST = 6


def attempts_path(run: Path, stage: str) -> Path:
    """Outside the stage's folder, which is emptied when it starts anew."""
    return run / "slurm" / f"{stage.replace('/', '-')}.attempts.jsonl"


def read_attempts(run: Path, stage: str, job: str) -> list[dict]:
    """All attempts of one job at a stage, the oldest first."""
    return [entry for entry in _read(run, stage) if entry["job"] == job]


def begin_attempt(run: Path, stage: str) -> None:
    """Note, on a job's first node, the step at which this attempt begins; refuse a vain one.

    Called on every node. It doesn't matter how earlier attempts ended: saved at the time limit,
    preempted, with a lost node. What counts is that the next begins at a later step, or that a node
    that failed is left out since.

    Raises BarError if two attempts in a row made no progress, or five whatever nodes they had.
    """
    job = os.environ["SLURM_JOB_ID"]
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    step = max(saved_steps(run / stage), default=0)
    earlier = [e for e in read_attempts(run, stage, job) if e["restart"] < restart]
    this = {"job": job, "restart": restart, "step": step, "without": left_out(run)}
    without = [of.get("without", []) for of in [*earlier, this] if of["step"] == step]
    last = without[-_BEGINNINGS_WITHOUT_PROGRESS:]
    alike = last == [this["without"]] * _BEGINNINGS_WITHOUT_PROGRESS
    if alike or len(without) >= _BEGINNINGS_AT_MOST:
        vain = (
            "two attempts in a row made no progress, both"
            if alike
            else "five attempts made no progress, all"
        )
        raise BarError(
            f"{stage}: {vain} began at step {step} and so would this one; look above for why they "
            "ended, raise the time limit or lower save_every, then submit again"
        )
    if os.environ.get("SLURM_NODEID", "0") == "0":
        _write(run, stage, [*_read(run, stage), this | {"began": time.time()}])


def end_attempt(run: Path, stage: str, failure: str) -> None:
    """Note what ended this job's last attempt. One of its nodes calls this."""
    *earlier, last = _read(run, stage)
    _write(run, stage, [*earlier, last | {"failure": failure}])


def _read(run: Path, stage: str) -> list[dict]:
    path = attempts_path(run, stage)
    return list(map(json.loads, path.read_text().splitlines())) if path.is_file() else []


def _write(run: Path, stage: str, entries: list[dict]) -> None:
    write_json_lines(attempts_path(run, stage), entries)
