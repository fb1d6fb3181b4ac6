"""A recipe's keys from where they are written: files on top of each other, and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from megatron_bar.runtime.errors import BarError


def file_layers(path: Path, above: tuple[Path, ...] = ()) -> list[DictConfig]:
    """The YAML at `path` and the files that it `extends`, the farthest first.

    Files that its systems extend are named from its folder, too; here they get their whole path.

    Raises BarError for a file that doesn't exist, or that extends itself.
    """
    if not path.is_file():
        raise BarError(f"recipe {path} doesn't exist")
    content = OmegaConf.load(path)
    if not isinstance(content, DictConfig):
        raise BarError(f"recipe {path} is not YAML with keys")
    systems = content.get("systems")
    for keys in systems.values() if isinstance(systems, DictConfig) else ():
        if isinstance(keys, DictConfig) and keys.get("extends") is not None:
            keys.extends = str(path.parent / str(keys.extends))
    extended = content.pop("extends", None)
    if extended is None:
        return [content]
    below = path.parent / str(extended)
    if below.resolve() in (seen := (*above, path.resolve())):
        raise BarError(f"recipe {path} extends {below}, which extends it")
    return [*file_layers(below, seen), content]


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """Dotted `key=value` words as keys. Raises BarError for a word that isn't one."""
    for override in overrides:
        if "=" not in override:
            raise BarError(f"override {override!r} is not of the form key=value")
    return OmegaConf.from_dotlist(list(overrides))


def merged(below: DictConfig, *layers: DictConfig) -> DictConfig:
    """`below` with the keys of each of `layers`, the last one's before all others'.

    A list takes the place of a list; `data.0.count=20`, keys that are numbers, changes an item.

    Raises ValueError for an item that isn't there, and OmegaConf's errors for keys and values that
    don't fit.
    """
    for layer in layers:
        held, told = (OmegaConf.to_container(keys) for keys in (below, layer))
        below = OmegaConf.merge(below, _with_whole_lists(told, held))
    return below


def _with_whole_lists(told: Any, held: Any, where: str = "") -> Any:
    """`told`, with a list in place of each mapping that counts into a list of `held`."""
    if not isinstance(told, dict):
        return told
    if isinstance(held, list):
        items = list(held)
        for key, value in told.items():
            index = _index(key, held, where)
            value = _with_whole_lists(value, items[index], f"{where}.{index}")
            both = isinstance(value, dict) and isinstance(items[index], dict)
            items[index] = OmegaConf.merge(items[index], value) if both else value
        return items
    found = held if isinstance(held, dict) else {}
    return {key: _with_whole_lists(value, found.get(key), f"{where}.{key}".removeprefix("."))
            for key, value in told.items()}


def _index(key: Any, items: list[Any], where: str) -> int:
    if not str(key).isdecimal():
        raise ValueError(f"{where} is a list, and {key!r} is not the number of an item; they are "
                         "counted from 0")
    if int(key) >= len(items):
        raise ValueError(f"{where} has no item {key}; there are {len(items)}, counted from 0")
    return int(key)
