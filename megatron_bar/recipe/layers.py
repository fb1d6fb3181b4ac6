"""A recipe's keys from where they are written: files on top of each other, and the command line."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from megatron_bar.recipe.schema import Recipe
from megatron_bar.recipe.typed import did_you_mean, field_types, keys_of, without_none
from megatron_bar.runtime.errors import BarError, raise_all
from megatron_bar.runtime.plain_yaml import parse_yaml, read_yaml, under


def file_layers(path: Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """The recipe at `path` and the files that it `extends`, the farthest first, typed.

    Files that its systems extend are named from its folder, too; here they get their whole path.

    Raises BarError for a file that doesn't exist or extends itself, and for keys and values that a
    recipe hasn't.
    """
    content = keys_of(read_yaml(path, "recipe"), Recipe, path.parent)
    for keys in (content.get("systems") or {}).values():
        if keys and keys.get("extends") is not None:
            keys["extends"] = str(path.parent / keys["extends"])
    extended = content.pop("extends", None)
    if extended is None:
        return [content]
    below = path.parent / extended
    if below.resolve() in (seen := (*above, path.resolve())):
        raise BarError(f"recipe {path} extends {below}, which extends it")
    return [*file_layers(below, seen), content]


def parse_overrides(overrides: Sequence[str], schema: type = Recipe) -> list[dict[str, Any]]:
    """Dotted `key=value` words as keys of `schema`, a layer each; files are named from here.

    Raises BarError for words that aren't of this form, and for keys and values that `schema`
    hasn't.
    """
    layers, faults = [], []
    for override in overrides:
        key, equals, value = override.partition("=")
        try:
            if not equals or not all(key.split(".")):
                raise BarError(f"override {override!r} is not of the form key=value")
            word = parse_yaml(value, "command line")
            within = dataclasses.replace(word, root=under(key.split("."), word.root))
            layers.append(keys_of(within, schema, Path()))
        except BarError as error:
            faults.append(str(error))
    raise_all(faults)
    return layers


def overridden(start: Any, overrides: Sequence[str], where: str) -> Any:
    """The dataclass `start` with `key=value` words in place of its own values.

    Raises BarError, which begins with `where`, also for values of `start` that are of wrong types.
    """
    layers = parse_overrides(overrides, type(start))
    try:
        config = OmegaConf.structured(start)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise BarError(f"{where}: {key}{str(error).splitlines()[0]}") from None
    return resolved(merged(where, config, *layers), where)


def merged(where: str, below: DictConfig, *layers: Mapping[str, Any]) -> DictConfig:
    """`below` with the keys of each of `layers`, the last one's before all others'.

    Keys are added to keys, a list takes the place of a list; `data.0.count=20`, keys that are
    numbers, changes an item. None in place of a domain, an item or the like takes it away.

    Raises BarError, which begins with `where`, for a part to change or take away that isn't there.
    """
    config: Any = copy.deepcopy(below)
    schema = OmegaConf.get_type(config)
    try:
        for layer in layers:
            kept = _without_taken(layer, config, schema)
            whole = _with_whole_lists(kept, OmegaConf.to_container(config))
            config = OmegaConf.merge(config, whole)
    except (BarError, OmegaConfBaseException) as error:
        raise BarError(f"{where}: {str(error).splitlines()[0]}") from None
    return config


def resolved(config: DictConfig, where: str) -> Any:
    """The object that `config` describes. Raises BarError where `${...}` leads nowhere."""
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        if isinstance(error, MissingMandatoryValue):
            raise BarError(f"{where}: {error.key} is missing") from None
        key = f"{error.full_key}: " if error.full_key else ""
        raise BarError(f"{where}: {key}{str(error).splitlines()[0]}") from None


def _without_taken(override: Any, held: Any, hint: Any, where: str = "") -> Any:
    """`override` without the names in it that take a part away, which are then gone from `held`."""
    hint, _ = without_none(hint)
    if not isinstance(override, Mapping):
        return override
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = field_types(hint)
    elif typing.get_origin(hint) is dict and not _holds_none(of := typing.get_args(hint)[1]):
        hints = dict.fromkeys(override, of)
        for name in [name for name, value in override.items() if value is None]:
            place = f"{where}.{name}"
            if not isinstance(held, DictConfig) or name not in held:
                known = list(held) if isinstance(held, DictConfig) else []
                raise BarError(
                    f"{place} is null, which takes it away, but there is none"
                    f"{did_you_mean(name, known) if known else ''}"
                )
            del held[name]
        override = {name: value for name, value in override.items() if value is not None}
    else:
        return override
    return {
        name: _without_taken(
            value, _held_at(held, name), hints[name], f"{where}.{name}".removeprefix(".")
        )
        for name, value in override.items()
    }


def _holds_none(hint: Any) -> bool:
    """A null is a value there: of a setting of Megatron-Core's, or a system without keys."""
    return hint is Any or without_none(hint)[1]


def _held_at(held: Any, name: str) -> Any:
    there = isinstance(held, DictConfig) and name in held
    return held[name] if there and not OmegaConf.is_interpolation(held, name) else None


def _with_whole_lists(override: Any, held: Any, where: str = "") -> Any:
    """`override`, with a list in place of each mapping that counts into a list of `held`."""
    if not isinstance(override, Mapping):
        return override
    if isinstance(held, list):
        items = list(held)
        for key, value in override.items():
            index = _index(key, held, where)
            value = _with_whole_lists(value, items[index], f"{where}.{index}")
            both = isinstance(value, dict) and isinstance(items[index], dict)
            items[index] = OmegaConf.merge(items[index], value) if both else value
        taken = {int(key) for key, value in override.items() if value is None}
        return [item for index, item in enumerate(items) if index not in taken]
    found = held if isinstance(held, dict) else {}
    return {
        key: _with_whole_lists(value, found.get(key), f"{where}.{key}".removeprefix("."))
        for key, value in override.items()
    }


def _index(key: str, items: list[Any], where: str) -> int:
    if not str(key).isdecimal():
        raise BarError(
            f"{where} is a list, and {key!r} is not the number of an item; they are counted from 0"
        )
    if int(key) >= len(items):
        raise BarError(f"{where} has no item {key}; there are {len(items)}, counted from 0")
    return int(key)
