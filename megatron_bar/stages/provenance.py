"""Inputs that decide a stage's result: settings and contents of files, and how two of them differ.

A stage leaves a record of them. It is compared key by key with what the stage would be made of now,
so that a stage is done again for what matters to it alone, and the user can be told why. A file is
what is in it: its path, its time and its owner don't count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_bar.checkpoints.tokenizer_files import TOKENIZER_FILES
from megatron_bar.data.paths import files_of
from megatron_bar.recipe.deciding import KeyPath, Setting
from megatron_bar.recipe.fields import (
    CONTENTS,
    DATA_FILES,
    DATASET,
    FUNCTION,
    HF_FOLDER,
    TEMPLATE,
)
from megatron_bar.recipe.paths import function_in
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.digests import content_digest
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import json_digest, read_json
from megatron_bar.stages.stage import Stage

# In a folder of data, what is about the data and not data.
_ABOUT = (".md", ".py")

# Records have this key that were made when the usual type of a stage was float32, not that of its
# start. Only starts in float32 could be trained from then, so it is the same.
_OLD = "identity"

Settings = Mapping[KeyPath, Setting]  # those of a stage that decide


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
    """A record that `changes` compares later: settings and the digests of the files they name.

    A JSON value.
    """
    settings = stage.settings()
    found = stage.deciding(settings)
    return {
        "kind": stage.KIND,
        "settings": settings,
        "outside": {
            _place(found, key_path): _contents(found, key_path)
            for key_path, setting in found.items()
            if _names_outside(setting)
        },
        # Nothing is compared by them: they tell which file of a model is another one.
        "files": {
            setting.value: _model_files(setting) for setting in found.values() if _is_model(setting)
        },
    }


def changes(recorded: Mapping[str, Any], stage: Stage) -> list[Change]:
    """Changes since `recorded`, in the settings' order, of what decides the stage's result.

    A file that isn't there any more counts as what it was: that can't be told. Records of versions
    that took a file by its name, size and time are compared by these.
    """
    if recorded.get("kind") != stage.KIND or "settings" not in recorded:
        return [Change("the kind of stage", recorded.get("kind"), stage.KIND)]
    outside = recorded.get("outside", {})
    was, now = stage.deciding(recorded["settings"]), stage.deciding(stage.settings())
    if _OLD in recorded:
        was = {
            key_path: Setting(None, setting.metadata)
            if key_path[-1] == "dtype" and setting.value == "float32"
            else setting
            for key_path, setting in was.items()
        }
    found = [
        Change(
            stage.recipe_key(key_path),
            _value(was, key_path),
            _value(now, key_path),
            _other_files(recorded.get("files", {}), now.get(key_path)),
        )
        for key_path in dict.fromkeys([*now, *was])
        if not _same(was, now, key_path, outside)
    ]
    return [change for i, change in enumerate(found) if change not in found[:i]]


def _value(settings: Settings, key_path: KeyPath) -> Any:
    return settings[key_path].value if key_path in settings else _ABSENT


def _same(was: Settings, now: Settings, key_path: KeyPath, outside: Mapping[str, Any]) -> bool:
    if key_path not in was or key_path not in now:
        return False
    equal = was[key_path].value == now[key_path].value
    if not (_names_outside(was[key_path]) and _names_outside(now[key_path])):
        return equal
    before = outside.get(_place(was, key_path))
    if isinstance(before, list):
        return _same_by_time(before, now[key_path], equal)
    after = _contents(now, key_path)
    if None in (before, after):  # gone, and maybe named from another folder than before
        return equal or Path(was[key_path].value).name == Path(now[key_path].value).name
    return before == after


def _names_outside(setting: Setting) -> bool:
    contents, value = setting.metadata.get(CONTENTS), setting.value
    if contents is None or not isinstance(value, str):
        return False
    if contents == FUNCTION:
        return function_in(value) is not None
    return contents != TEMPLATE or value.endswith(TEMPLATE)


def _place(settings: Settings, key_path: KeyPath) -> str:
    """What contents are recorded by: a path, or a dataset's name and split."""
    named = settings[key_path].value
    return f"{named}, {_split(settings, key_path)}" if _on_the_hub(settings[key_path]) else named


def _split(settings: Settings, key_path: KeyPath) -> str:
    return settings[*key_path[:-1], "split"].value


def _on_the_hub(setting: Setting) -> bool:
    return setting.metadata[CONTENTS] == DATASET and not Path(setting.value).exists()


def _contents(settings: Settings, key_path: KeyPath) -> str | None:
    """A digest of what a stage reads there; None if it isn't there."""
    setting = settings[key_path]
    named, path = setting.value, Path(setting.value)
    try:
        if _on_the_hub(setting):
            from megatron_bar.data.sources import open_source  # loads what reads datasets

            dataset = Source(hub=named, split=_split(settings, key_path))
            return open_source(dataset, seed=0, texts=True).records.identity
        if setting.metadata[CONTENTS] == DATA_FILES:
            files = files_of(named)
            return json_digest(list(map(content_digest, files))) if files else None
        if setting.metadata[CONTENTS] == FUNCTION and (found := function_in(named)):
            file, function = found
            return json_digest([content_digest(Path(file)), function])
        if path.is_dir():
            return json_digest(_folder_digests(setting))
        return content_digest(path)
    except (OSError, BarError):
        return None


def _folder_digests(setting: Setting) -> dict[str, str]:
    return {
        str(file.relative_to(setting.value)): content_digest(file) for file in _files_read(setting)
    }


def _is_model(setting: Setting) -> bool:
    return setting.metadata.get(CONTENTS) == HF_FOLDER and setting.value is not None


def _model_files(setting: Setting) -> dict[str, str]:
    """Digests of a model's files; none if one can't be read, which the stage then tells."""
    try:
        return _folder_digests(setting)
    except (OSError, BarError):
        return {}


def _other_files(
    recorded: Mapping[str, Mapping[str, str]], setting: Setting | None
) -> tuple[str, ...]:
    """The files of a model that aren't as they were `recorded`; none where they weren't."""
    if setting is None or not _is_model(setting) or not (was := recorded.get(setting.value)):
        return ()
    now = _model_files(setting)
    return tuple(
        str(Path(setting.value) / file)
        for file in sorted({*was, *now})
        if was.get(file) != now.get(file)
    )


def _files_read(setting: Setting) -> list[Path]:
    """The files of a folder that a stage reads."""
    folder = Path(setting.value)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if setting.metadata[CONTENTS] == HF_FOLDER:
        from megatron_bar.checkpoints.hf_weights import INDEX, SINGLE  # loads torch

        names = {"config.json", INDEX, SINGLE, *TOKENIZER_FILES}
        if (folder / INDEX).is_file():
            names |= set(read_json(folder / INDEX).get("weight_map", {}).values())
        return [path for path in files if str(path.relative_to(folder)) in names]
    if setting.metadata[CONTENTS] == DATASET:
        return [
            path
            for path in files
            if path.suffix not in _ABOUT
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
    return files


def _same_by_time(before: list[list], setting: Setting, equal: bool) -> bool:
    """By names, sizes and times of the files, as versions before digests recorded them."""
    path = Path(setting.value)
    if not path.exists():
        return equal
    files = _files_read(setting) if path.is_dir() else [path]
    found = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    read = {file.name for file in files}
    return found == [entry for entry in before if entry[0] in read]
