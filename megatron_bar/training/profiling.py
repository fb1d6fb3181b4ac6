"""Traces of some steps, and of a GPU's memory: where time and room go."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from megatron_bar.recipe.training import Profile
from megatron_bar.runtime.console import say

FOLDER = "profile"
_EVENTS = 200_000  # of the allocator, the latest ones


class StepProfile(contextlib.AbstractContextManager):
    """Traces the steps that a stage's `profile` names, on each rank, into the stage's folder.

    `profile/trace-RANK.json` is for chrome://tracing or Perfetto. On a GPU there is also
    `memory-RANK.pickle`, what was allocated where, for pytorch.org/memory_viz.
    """

    def __init__(self, wanted: Profile | None, folder: Path, label: str) -> None:
        self.wanted, self.folder, self.label = wanted, Path(folder) / FOLDER, label
        self._tracer: profile | None = None

    def reached(self, done: int) -> None:
        """Start or end the trace where it is time to, `done` steps being done."""
        if self.wanted is None:
            return
        first, last = self.wanted.steps
        if self._tracer is not None and done >= last:
            self._end()
        elif self._tracer is None and first <= done + 1 <= last:
            self._begin()

    def __exit__(self, *_: object) -> None:
        """Write what there is of a trace that the stage's end cut short."""
        if self._tracer is not None:
            self._end()

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_EVENTS)
        self._tracer = profile(activities=activities, record_shapes=True)
        self._tracer.start()

    def _end(self) -> None:
        assert self._tracer is not None
        self._tracer.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tracer.export_chrome_trace(str(self.folder / f"trace-{dist.get_rank()}.json"))
        self._tracer = None
        if torch.cuda.is_available():
            write_memory_snapshot(self.folder)
            torch.cuda.memory._record_memory_history(enabled=None)
        say(f"{self.label}: traces of steps are in {self.folder}")


def write_memory_snapshot(folder: Path) -> Path:
    """Write what this rank's GPU has allocated into `folder`; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"memory-{dist.get_rank()}.pickle"
    torch.cuda.memory._dump_snapshot(str(path))
    return path
