"""Finished training that would be done anew: why, what it took, and whether it is meant.

Nothing is asked where a stage's folder is gone, since who removed it knows, nor for conversions and
evaluations, nor for training that took less than ten minutes of one process all together.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_bar.analysis.upgrade import BEFORE
from megatron_bar.methods.graph import Stage
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import BEGUN_FILE, changes_since, read_begun, read_done
from megatron_bar.stages.training_stage import TrainingStage
from megatron_bar.training.saved import FOLDER, saved_steps

_WORTH_A_QUESTION = 600  # seconds of one process


@dataclass(frozen=True)
class LostTraining:
    """A stage that is trained, at least in part, and would be trained anew."""

    stage: str
    why: str
    steps: int
    seconds: float  # of each process
    processes: int
    finished: bool

    @property
    def cost(self) -> float:
        """Seconds of processes."""
        return self.seconds * self.processes

    def __str__(self) -> str:
        where = "" if self.finished else ", cut short"
        return f"{self.stage} ({self.why}; {self.steps} steps{where}, {_duration(self.cost)})"


def training_lost(
    stages: Sequence[Stage], run: Path, todo: Collection[str], meant: Collection[str] = ()
) -> list[LostTraining]:
    """The stages in `todo` whose training in `run` would be replaced, in order.

    `meant` are those that the user asked to replace. One that an upgrade keeps in RUN/before isn't
    lost. What lies downstream of a stage whose folder is gone isn't listed either. What makes a
    stage stale is listed once at least, also where that stage trains nothing itself.
    """
    causes: dict[str, _Cause | None] = {}  # None: nothing is lost by a slip
    found = []
    for stage in stages:
        if stage.name not in todo:
            continue
        record = read_done(run / stage.name) or read_begun(run / stage.name)
        cause = (
            None if stage.name in meant or record is None else _cause(stage, run, record, causes)
        )
        causes[stage.name] = cause
        if cause is None or not isinstance(stage, TrainingStage) or _kept(run, stage.name):
            continue
        loss = _loss(stage, run / stage.name, cause.why)
        if loss is not None:
            found.append(loss)
            causes[stage.name] = _Cause(cause.why, untold=None)
    return found


@dataclass(frozen=True)
class _Cause:
    """Why a stage is stale, and where it began if that isn't listed for a stage upstream."""

    why: str
    untold: str | None


def _cause(
    stage: Stage, run: Path, record: Mapping[str, Any], causes: Mapping[str, _Cause | None]
) -> _Cause | None:
    if (own := _own_reason(stage, run, record)) is not None:
        return _Cause(own, untold=own)
    for name in stage.inputs.values():
        if (cause := causes.get(name)) is not None:
            root = "" if cause.untold is None else f": {cause.untold}"
            return _Cause(f"{name} is made anew{root}", cause.untold)
    return None


def _own_reason(stage: Stage, run: Path, record: Mapping[str, Any]) -> str | None:
    """What is another setting, file or input than it was, whatever became of the inputs."""
    changed = changes_since(record, stage, run)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{changed[0]}{more}"
    before = {entry.get("stage", role) for role, entry in record["inputs"].items()}
    if new := [name for name in stage.inputs.values() if name not in before]:
        return f"{new[0]} is new"
    if gone := sorted(before - set(stage.inputs.values())):
        return f"{gone[0]} is left out"
    return None


def _kept(run: Path, name: str) -> bool:
    kept, here = (read_done(folder / name) for folder in (run / BEFORE, run))
    return kept is not None and here is not None and kept["id"] == here["id"]


def _loss(stage: Stage, folder: Path, why: str) -> LostTraining | None:
    done = read_done(folder)
    if done is not None:
        processes = done.get("layout", {}).get("processes", 1)
        return LostTraining(
            stage.name, why, done.get("steps", 0), done.get("seconds", 0.0), processes, True
        )
    steps = saved_steps(folder)
    if not steps:
        return None
    began = (read_begun(folder) or {}).get("begun") or (folder / BEGUN_FILE).stat().st_mtime
    saved = (folder / FOLDER / str(steps[-1])).stat().st_mtime
    seconds = max(0.0, saved - began)
    return LostTraining(stage.name, why, steps[-1], seconds, stage.layout.processes, False)


def confirm_replacing(lost: Sequence[LostTraining], yes: bool) -> None:
    """Tell what would be lost; go on if that is little, `yes`, or the user says so.

    Raises BarError if the user doesn't, or can't be asked.
    """
    if not lost:
        return
    losses = "; ".join(map(str, lost))
    cost = sum(loss.cost for loss in lost)
    if yes or cost < _WORTH_A_QUESTION:
        say(f"trained anew: {losses}")
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BarError(
            f"this would replace {_duration(cost)} of training: {losses}; give --yes if "
            "that is meant (replace=True in Python), or the run another name"
        )
    say(f"This replaces {_duration(cost)} of training, each stage once its new result stands:")
    for loss in lost:
        say(f"  {loss}")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise BarError("nothing was changed")


def _duration(seconds: float) -> str:
    """Of processes, which are GPUs on a cluster."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes of one process"
    return f"{seconds / 3600:,.1f} GPU-hours"
