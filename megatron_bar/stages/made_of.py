"""What decides a stage's result: settings and the contents of files, and how two of them differ.

A stage leaves a record of them. It is compared key by key with what the stage would be made of now,
so that a stage is done again for what matters to it alone, and the user can be told why. A file is
what is in it: its path, its time and its owner don't count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_bar.checkpoints.companions import COMPANIONS
from megatron_bar.data.paths import files_of
from megatron_bar.recipe.deciding import deciding
from megatron_bar.recipe.graph import Stage
from megatron_bar.recipe.schema import FILE, Source
from megatron_bar.runtime.digests import content_digest
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import json_digest, read_json

# Settings that name what lies outside the run.
_OF_SOURCES = tuple(field.name for field in dataclasses.fields(Source) if FILE in field.metadata)
_HF_FOLDER, _CHECKPOINT, _TEMPLATE = "hf", "checkpoint", "chat_template"
_PATH, _HUB = "path", "hub"  # of a source
_OUTSIDE = (*_OF_SOURCES, _HF_FOLDER, _CHECKPOINT, _TEMPLATE)
# In a folder of data, what is about the data and not data.
_ABOUT = (".md", ".py")

# Records have this key that were made when the usual type of a stage was float32, not that of its
# start. Only starts in float32 could be trained from then, so it is the same.
_OLD = "identity"

Leaf = tuple[str | int, ...]  # the keys and places that lead to a setting


@dataclass(frozen=True)
class Change:
    """One setting that isn't what the stage was made with."""

    key: str
    was: Any
    now: Any
    files: tuple[str, ...] = ()  # those of a folder that differ, where the record tells

    def __str__(self) -> str:
        if self.was == self.now:
            first, *more = self.files or (self.now,)
            others = f" and {len(more)} more have" if more else " has"
            return f"{first}{others} other contents ({self.key})"
        return f"{self.key} is {_word(self.now)}, was {_word(self.was)}"


class _Absent:
    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def _word(value: Any) -> str:
    return "unset" if value is None else str(value)


def record(stage: Stage) -> dict[str, Any]:
    """What `changes` compares later: the stage's settings and the digests of the files they name.

    A JSON value.
    """
    flat = dict(_leaves(deciding(stage.settings, stage.kind)))
    return {"kind": stage.kind, "settings": stage.settings,
            "outside": {_place(flat, leaf): _contents(flat, leaf)
                        for leaf, value in flat.items() if _names_outside(leaf, value)},
            # Nothing is compared by them: they tell which file of a model is another one.
            "files": {value: _model_files(value)
                      for leaf, value in flat.items() if leaf[-1] == _HF_FOLDER}}


def changes(recorded: Mapping[str, Any], stage: Stage) -> list[Change]:
    """What decides the stage's result and isn't as it was `recorded`, in the settings' order.

    A file that isn't there any more counts as what it was: that can't be told. Records of versions
    that took a file by its name, size and time are compared by these.
    """
    if recorded.get("kind") != stage.kind or "settings" not in recorded:
        return [Change("the kind of stage", recorded.get("kind"), stage.kind)]
    outside = recorded.get("outside", {})
    was = dict(_leaves(deciding(recorded["settings"], stage.kind)))
    if _OLD in recorded:
        was = {leaf: None if leaf[-1] == "dtype" and value == "float32" else value
               for leaf, value in was.items()}
    now = dict(_leaves(deciding(stage.settings, stage.kind)))
    found = [
        Change(recipe_key(stage, leaf), was.get(leaf, _ABSENT), now.get(leaf, _ABSENT),
               _other_files(recorded.get("files", {}), leaf, now.get(leaf)))
        for leaf in dict.fromkeys([*now, *was]) if not _same(was, now, leaf, outside)
    ]
    return [change for i, change in enumerate(found) if change not in found[:i]]


def _same(
    was: Mapping[Leaf, Any], now: Mapping[Leaf, Any], leaf: Leaf, outside: Mapping[str, Any]
) -> bool:
    if leaf not in was or leaf not in now:
        return False
    equal = was[leaf] == now[leaf]
    if not (_names_outside(leaf, was[leaf]) and _names_outside(leaf, now[leaf])):
        return equal
    before = outside.get(_place(was, leaf))
    if isinstance(before, list):
        return _same_by_time(before, leaf, now[leaf], equal)
    after = _contents(now, leaf)
    if None in (before, after):  # gone, and maybe named from another folder than before
        return equal or Path(was[leaf]).name == Path(now[leaf]).name
    return before == after


def recipe_key(stage: Stage, leaf: Leaf) -> str:
    """What the recipe calls a setting of a stage."""
    first, *rest = leaf
    of_domain = f"domains.{stage.domain or '*'}"
    match first:
        case "training" if stage.kind == "pretrain":
            keys = ["pretrain", "training", *rest]
        case "training" if stage.kind == "route":
            keys = ["route", "training", *rest]
        case "training":
            keys = [of_domain, stage.kind, *rest]
        case "parts":
            keys = ["domains", rest[0], stage.kind, *rest[1:]]
        case "sampled":
            keys = ["domains", rest[0], "sft", "data", *rest[1:]]
        case "tasks" if rest and rest[0] == "general":
            keys = ["evaluate", *rest]
        case "tasks":
            keys = ["domains", *rest[:1], "tasks", *rest[1:]]
        case "hf":
            keys = [stage.name]
        case "checkpoint":
            keys = [of_domain, first]
        case "shared":
            keys = ["merge", first]
        case "seed" | "chat_template" | "method" | "pretrain":
            keys = [first, *rest]
        case _:
            keys = [stage.kind, first, *rest]
    return ".".join(map(str, keys))


def _leaves(value: Any, way: Leaf = ()) -> Iterator[tuple[Leaf, Any]]:
    """The settings within settings, each with the way to it. An empty list or dict is one, too."""
    if not isinstance(value, (dict, list)) or (way and not value):
        yield way, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, (*way, key))


def _names_outside(leaf: Leaf, value: Any) -> bool:
    return isinstance(value, str) and leaf[-1] in _OUTSIDE and (
        leaf[-1] != _TEMPLATE or value.endswith(".jinja"))


def _place(flat: Mapping[Leaf, Any], leaf: Leaf) -> str:
    """What contents are recorded by: a path, or a dataset's name and split."""
    named = flat[leaf]
    return f"{named}, {flat[*leaf[:-1], 'split']}" if _on_the_hub(leaf, named) else named


def _on_the_hub(leaf: Leaf, named: str) -> bool:
    return leaf[-1] == _HUB and not Path(named).exists()


def _contents(flat: Mapping[Leaf, Any], leaf: Leaf) -> str | None:
    """A digest of what a stage reads there; None if it isn't there."""
    named, path = flat[leaf], Path(flat[leaf])
    try:
        if _on_the_hub(leaf, named):
            from megatron_bar.data.sources import open_source  # loads what reads datasets

            dataset = Source(hub=named, split=flat[*leaf[:-1], "split"])
            return open_source(dataset, seed=0, texts=True).records.identity
        if leaf[-1] == _PATH:
            files = files_of(named)
            return json_digest(list(map(content_digest, files))) if files else None
        if path.is_dir():
            return json_digest(_folder_digests(leaf, path))
        return content_digest(path)
    except (OSError, BarError):
        return None


def _folder_digests(leaf: Leaf, folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): content_digest(file)
            for file in _files_read(leaf, folder)}


def _model_files(folder: str) -> dict[str, str]:
    """None where one can't be read, which the stage itself tells."""
    try:
        return _folder_digests((_HF_FOLDER,), Path(folder))
    except (OSError, BarError):
        return {}


def _other_files(
    recorded: Mapping[str, Mapping[str, str]], leaf: Leaf, named: Any
) -> tuple[str, ...]:
    """The files of a model that aren't as they were `recorded`; none where they weren't."""
    if leaf[-1] != _HF_FOLDER or not (was := recorded.get(named)):
        return ()
    now = _model_files(named)
    return tuple(str(Path(named) / file) for file in sorted({*was, *now})
                 if was.get(file) != now.get(file))


def _files_read(leaf: Leaf, folder: Path) -> list[Path]:
    """The files of a folder that a stage reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if leaf[-1] == _HF_FOLDER:
        from megatron_bar.checkpoints.hf_weights import INDEX, SINGLE  # loads torch

        names = {"config.json", INDEX, SINGLE, *COMPANIONS}
        if (folder / INDEX).is_file():
            names |= set(read_json(folder / INDEX).get("weight_map", {}).values())
        return [path for path in files if str(path.relative_to(folder)) in names]
    if leaf[-1] == _HUB:
        return [path for path in files if path.suffix not in _ABOUT
                and not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return files


def _same_by_time(before: list[list], leaf: Leaf, named: str, equal: bool) -> bool:
    """By names, sizes and times of the files, as versions before digests recorded them."""
    path = Path(named)
    if not path.exists():
        return equal
    files = _files_read(leaf, path) if path.is_dir() else [path]
    found = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    read = {file.name for file in files}
    return found == [entry for entry in before if entry[0] in read]
