"""The context that a stage is given, and how it says that it is done."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.console import say
from megatron_bar.runtime.digests import remember_in
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import (
    json_digest,
    publish,
    read_json,
    remove_folder,
    write_json,
)
from megatron_bar.stages.continued import differences, manner
from megatron_bar.stages.provenance import Change, changes, record
from megatron_bar.stages.stage import Stage
from megatron_bar.training.saved import saved_steps

DONE_FILE = "stage.json"
BEGUN_FILE = "begun.json"
REPLACED = "replaced"  # folder of a run
_DIGESTS = "data/digests"

AnyStage = TypeVar("AnyStage", bound=Stage, covariant=True)


class Method(Protocol):
    """Facts that stages know of the recipe's method."""

    MODEL: str  # the evaluated model that the run is for
    MADE: str  # how its model was made, for the model card


@dataclass(frozen=True)
class RunGraph:
    """All stages of a run, each after those it needs, and the method that asks for them."""

    stages: Sequence[Stage]
    method: Method


@dataclass(frozen=True)
class Context(Generic[AnyStage]):
    """One stage of one run."""

    recipe: Recipe
    run: Path
    stage: AnyStage
    graph: RunGraph

    @property
    def folder(self) -> Path:
        return self.run / self.stage.name

    def input_folder(self, role: str) -> Path:
        return self.run / self.stage.inputs[role]

    def checkpoint(self, role: str) -> Path:
        return self.input_folder(role) / "checkpoint"

    def input_ids(self) -> dict[str, dict[str, str]]:
        """The execution that each input is of, by role. Raises BarError for one that isn't done."""
        ids = {}
        for role, name in self.stage.inputs.items():
            done = read_done(self.run / name)
            if done is None:
                raise BarError(f"{self.stage.name} needs {name}, which isn't done")
            ids[role] = {"stage": name, "id": done["id"]}
        return ids


def identity(stage: Stage) -> str:
    """Changes when the stage's settings do, in what decides its result; files count by path."""
    decisive = {
        ".".join(map(str, key_path)): setting.value
        for key_path, setting in stage.deciding(stage.settings()).items()
    }
    return json_digest([stage.KIND, decisive, stage.inputs])


def read_done(folder: Path) -> dict[str, Any] | None:
    """The record that the stage left when it ended, or None where it hasn't."""
    path = folder / DONE_FILE
    return read_json(path) if path.is_file() else None


def read_begun(folder: Path) -> dict[str, Any] | None:
    """The record that a stage left when it began, or None where it has none with settings."""
    path = folder / BEGUN_FILE
    begun = read_json(path) if path.is_file() else {}
    return begun if "settings" in begun else None


def is_done(stage: Stage, run: Path, elsewhere: Mapping[str, Path] | None = None) -> bool:
    """The stage was done with these settings from the inputs that are in `run` now.

    Stages that are named in `elsewhere` stand in that run instead.
    """

    def read(name: str) -> dict[str, Any] | None:
        return read_done((elsewhere or {}).get(name, run) / name)

    done = read(stage.name)
    if done is None or done["inputs"].keys() != stage.inputs.keys():
        return False
    for role, name in stage.inputs.items():
        found = read(name)
        if found is None or found["id"] != done["inputs"][role]["id"]:
            return False
    return not changes_since(done, stage, run)


def changes_since(done: Mapping[str, Any], stage: Stage, run: Path) -> list[Change]:
    """Differences of the settings and files of a stage of `run` from those that `done` records."""
    if run.is_dir():
        remember_in(run / _DIGESTS)
    return changes(done, stage)


def prepare_folder(context: Context) -> None:
    """Make the stage's folder, or leave it where an execution of the same kind was cut short.

    What an execution with other settings or inputs left makes place: a finished result goes to
    `replaced_folder`, until the new one is done. One that was cut short is removed. Says what
    differs where a saved state is gone on from, and why where one isn't.
    """
    remember_in(context.run / _DIGESTS)
    folder, stage = context.folder, context.stage
    begun, inputs = read_begun(folder), context.input_ids()
    if read_done(folder) is not None:
        kept = replaced_folder(context.run, stage.name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        publish(folder, kept)
        say(f"{stage.name}: what stood is kept in {kept} until this is done")
    elif begun is not None and not (why := _why_anew(begun, inputs, stage)):
        if lines := differences(begun, stage, folder):
            for line in lines:
                say(line)
            write_json(folder / BEGUN_FILE, begun | manner(stage))
        return
    elif begun is not None and (steps := saved_steps(folder)):
        say(f"{stage.name}: starts anew, and the state after step {steps[-1]} is removed: {why}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(
        folder / BEGUN_FILE,
        record(stage) | manner(stage) | {"inputs": inputs, "begun": time.time()},
    )


def _why_anew(begun: Mapping[str, Any], inputs: Mapping[str, Any], stage: Stage) -> str | None:
    """The first reason why the state of an execution that `begun` records isn't gone on from."""
    if changed := changes(begun, stage):
        return str(changed[0])
    others = [
        role
        for role in {**inputs, **begun["inputs"]}
        if inputs.get(role) != begun["inputs"].get(role)
    ]
    return f"{stage.inputs.get(others[0], others[0])} was made anew" if others else None


def replaced_folder(run: Path, stage: str) -> Path:
    """The folder of a stage's finished result while it is made anew; RUN/replaced is like a run."""
    return run / REPLACED / stage


def remove_replaced(run: Path, stage: str) -> None:
    """Remove what stood before, if it is kept: the new result is done."""
    folder = replaced_folder(run, stage)
    if folder.exists():
        remove_folder(folder)
        with contextlib.suppress(OSError):  # others are kept there
            for parent in (folder.parent, run / REPLACED):
                parent.rmdir()


def write_done(context: Context, started: float, facts: dict[str, Any]) -> None:
    """Declare the stage done. Written last, in one step: a stage without it has to be run."""
    write_json(
        context.folder / DONE_FILE,
        {
            "id": os.urandom(8).hex(),  # of this execution: what lies downstream compares it
            "stage": context.stage.name,
            **read_json(context.folder / BEGUN_FILE),
            "seconds": round(time.time() - started, 2),
            "device": _device(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **manner(context.stage),
            **facts,
        },
    )
    remove_replaced(context.run, context.stage.name)


def _device() -> str:
    """What this process computed on, in the words of a report."""
    torch = sys.modules.get("torch")  # a conversion may do without
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
