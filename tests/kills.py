"""Killing stages, at a save or anywhere."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from megatron_bar.launch.processes import Job
from megatron_bar.training.metrics import read_metrics
from megatron_bar.training.resume import ResumePoints


def die_at_save() -> None:
    """Called by a rank: it will be killed as soon as its first resume point stands."""
    save = ResumePoints.save

    def save_and_die(self, progress):
        save(self, progress)
        self.finish()  # it has a name also where it was written meanwhile
        os.kill(os.getpid(), signal.SIGKILL)

    ResumePoints.save = save_and_die


def kill_somewhere(
    job: Job, folder: Path, during_save: bool, chance: random.Random, within_seconds: float
) -> bool:
    """SIGKILL all ranks at a random moment after a step; returns whether a save was on its way."""
    done = len(read_metrics(folder))
    while len(read_metrics(folder)) <= done and not job.poll():
        time.sleep(0.002)
    while during_save and not list((folder / "resume").glob(".*.partial")) and not job.poll():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, within_seconds))
    for rank in job.ranks:
        os.kill(rank.pid, signal.SIGKILL)
    for rank in job.ranks:
        rank.join()
    job.stop()
    return bool(list((folder / "resume").glob(".*.partial")))
