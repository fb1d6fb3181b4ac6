"""What a stage is given, and how it says that it is done."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from megatron_bar.data.files import files_of
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.graph import Stage, deciding
from megatron_bar.recipe.schema import Evaluate, Recipe, Rlvr, Source, Training
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import json_digest, read_json, write_json

DONE_FILE = "stage.json"
BEGUN_FILE = "begun.json"
_PACKAGES = ("megatron-bar", "megatron-core", "torch", "transformers")


@dataclass(frozen=True)
class Context:
    """One stage of one run."""

    recipe: Recipe
    run: Path
    stage: Stage

    @property
    def folder(self) -> Path:
        return self.run / self.stage.name

    def input_folder(self, role: str) -> Path:
        return self.run / self.stage.inputs[role]

    def checkpoint(self, role: str) -> Path:
        return self.input_folder(role) / "checkpoint"

    @property
    def training(self) -> Training:
        return training_of(self.stage)


def from_settings(schema: type, settings: Any) -> Any:
    """Dataclasses back from what `dataclasses.asdict` made of them."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), settings))


def training_of(stage: Stage) -> Training:
    """How a stage trains, as the recipe has it."""
    schema = Rlvr if stage.kind == "rlvr" else Training
    return from_settings(schema, stage.settings["training"])


def parts_of(stage: Stage) -> list[Stage]:
    """The domains' stages whose rows a stage trains on together, or the stage itself."""
    settings = dict(stage.settings)
    return [
        dataclasses.replace(stage, name=f"{stage.name}/parts/{domain}",
                            settings=settings | {"training": training})
        for domain, training in settings.pop("parts", {}).items()
    ] or [stage]


def evaluation_of(stage: Stage) -> Evaluate:
    """How an `evaluate` stage asks its items, as the recipe has it; its tasks are apart."""
    known = {field.name for field in dataclasses.fields(Evaluate)}
    return Evaluate(**{key: value for key, value in stage.settings.items() if key in known})


def routed_model(stage: Stage, merged: ModelConfig) -> ModelConfig:
    """The model that a `route` stage makes of the merged one."""
    return dataclasses.replace(
        merged, experts_per_token=stage.settings.get("active", merged.num_experts),
        renormalize=stage.settings.get("renormalize", False),
    )


def sources(settings: list[dict]) -> list[Source]:
    return [Source(**entry) for entry in settings]


def external_fingerprint(stage: Stage) -> dict[str, list]:
    """Names, sizes and times of the files outside the run that the stage reads."""
    found: dict[str, list] = {}

    def visit(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(inner, name)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                visit(inner, key)
        elif isinstance(value, str) and key in ("path", "hf", "hub", "chat_template"):
            path = Path(value)
            if key == "path":
                files = files_of(value)
            else:
                files = sorted(path.rglob("*")) if path.is_dir() else [path]
            found[value] = [[p.name, p.stat().st_size, p.stat().st_mtime_ns]
                            for p in files if p.is_file()]

    visit(deciding(stage.settings))
    return found


def identity(stage: Stage) -> str:
    """Changes when the stage's settings or outside files do, in what decides its result."""
    return json_digest([
        stage.kind, deciding(stage.settings), stage.inputs, external_fingerprint(stage),
    ])


def read_done(folder: Path) -> dict[str, Any] | None:
    """What the stage left when it ended, or None where it hasn't."""
    path = folder / DONE_FILE
    return read_json(path) if path.is_file() else None


def is_done(stage: Stage, run: Path, elsewhere: Mapping[str, Path] | None = None) -> bool:
    """The stage was done with these settings from the inputs that are in `run` now.

    Stages that are named in `elsewhere` stand in that run instead.
    """
    def read(name: str) -> dict[str, Any] | None:
        return read_done((elsewhere or {}).get(name, run) / name)

    done = read(stage.name)
    if done is None or done["identity"] != identity(stage):
        return False
    inputs = {role: read(name) for role, name in stage.inputs.items()}
    return all(found is not None and found["id"] == done["inputs"][role]["id"]
               for role, found in inputs.items())


def prepare_folder(context: Context) -> None:
    """Make the stage's folder; what an execution with other settings or inputs left is removed.

    An execution of the same kind that was cut short stays, to go on from.
    """
    begun = {"identity": identity(context.stage), "inputs": _input_ids(context)}
    path = context.folder / BEGUN_FILE
    unfinished = read_done(context.folder) is None
    if not (unfinished and path.is_file() and read_json(path) == begun):
        shutil.rmtree(context.folder, ignore_errors=True)
        context.folder.mkdir(parents=True)
        write_json(path, begun)


def _input_ids(context: Context) -> dict[str, dict[str, str]]:
    ids = {}
    for role, name in context.stage.inputs.items():
        done = read_done(context.run / name)
        if done is None:
            raise BarError(f"{context.stage.name} needs {name}, which isn't done")
        ids[role] = {"stage": name, "id": done["id"]}
    return ids


def write_done(context: Context, started: float, facts: dict[str, Any]) -> None:
    """Declare the stage done. Written last, in one step: a stage without it has to be run."""
    write_json(context.folder / DONE_FILE, {
        "id": os.urandom(8).hex(),  # of this execution: what lies downstream compares it
        "stage": context.stage.name,
        "kind": context.stage.kind,
        "identity": identity(context.stage),
        "inputs": _input_ids(context),
        "outside": external_fingerprint(context.stage),
        "settings": context.stage.settings,
        "layout": dataclasses.asdict(context.stage.layout),
        "seconds": round(time.time() - started, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": platform.python_version()} | {
            package: _version(package) for package in _PACKAGES
        },
        **facts,
    })


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
