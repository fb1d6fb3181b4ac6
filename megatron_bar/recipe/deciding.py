"""Settings that decide what a stage makes, and those that change its rounding alone.

Only the first make a finished stage stale.

Settings are walked along the types of the dataclasses that hold them, whose fields say themselves
what they are (`recipe.fields`).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_bar.recipe.fields import FORMS, ROUNDING, RUNTIME, about
from megatron_bar.recipe.renamed import with_present_names
from megatron_bar.recipe.training import REFERENCES, Source


@dataclass(frozen=True)
class Relevance:
    """The part of its settings that is relevant to what a kind of stage makes."""

    form: str | None = None  # the form that it reads sources in; None: any
    ignored: frozenset[str] = frozenset()  # fields of its own, and of its sources, that aren't
    names_matter: bool = False  # a draw depends on what its sources are called


@dataclass(frozen=True)
class Setting:
    """One value that decides, and the metadata of its field."""

    value: Any
    metadata: Mapping[str, Any]


KeyPath = tuple[str | int, ...]  # the keys and places that lead to a setting


def deciding(
    schema: type, values: Mapping[str, Any], relevance: Relevance = Relevance()
) -> dict[KeyPath, Setting]:
    """The settings that decide, each by its key path; an empty list or dict is one, too.

    `values` are those of a dataclass `schema` as `dataclasses.asdict` gives them. They may be those
    that a stage was made with by an earlier version: fields that weren't there then are at their
    default, and those that had another name have the present one.
    """
    return {
        key_path: setting
        for key_path, setting in _dataclass(schema, values, relevance, ())
        if RUNTIME not in setting.metadata
    }


def rounding(
    schema: type, values: Mapping[str, Any], relevance: Relevance = Relevance()
) -> dict[KeyPath, Setting]:
    """The settings that change how numbers are rounded and nothing else, as `deciding` has them."""
    return {
        key_path: setting
        for key_path, setting in _dataclass(schema, values, relevance, ())
        if setting.metadata.get(RUNTIME) == ROUNDING
    }


def _dataclass(
    schema: type, values: Mapping[str, Any], relevance: Relevance, key_path: KeyPath
) -> Iterator[tuple[KeyPath, Setting]]:
    values = _defaults(schema) | with_present_names(schema, values)
    if schema is Source:
        values, left_out = _source(values, relevance)
    else:
        left_out = relevance.ignored if not key_path else frozenset()
    for name, hint in _hints(schema).items():
        metadata = about(schema, name)
        read = relevance.form is None or relevance.form in metadata.get(FORMS, (relevance.form,))
        if name not in values or name in left_out or not read:
            continue
        of_runtime = {RUNTIME: metadata[RUNTIME]} if RUNTIME in metadata else {}
        for inner, setting in _value(hint, values[name], relevance, (*key_path, name), metadata):
            yield inner, Setting(setting.value, {**setting.metadata, **of_runtime})


def _value(
    hint: Any, value: Any, relevance: Relevance, key_path: KeyPath, metadata: Mapping[str, Any]
) -> Iterator[tuple[KeyPath, Setting]]:
    hint = _given(hint)
    if isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield from _dataclass(hint, value, relevance, key_path)
    elif isinstance(value, (Mapping, list, tuple)) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        inner = (typing.get_args(hint) or (Any,))[-1]
        for key, each in items:
            yield from _value(inner, each, relevance, (*key_path, key), metadata)
    else:
        yield key_path, Setting([] if value == () else value, metadata)


def _source(values: dict[str, Any], relevance: Relevance) -> tuple[dict[str, Any], frozenset[str]]:
    """A source's name is for logs, unless a draw depends on it.

    The usual column of references, written out or not, leads to the same result if to any.
    """
    values = values | {"reference_column": values["reference_column"] or REFERENCES}
    if relevance.names_matter or values["weight"] is not None:
        return values | {"name": values["name"] or _usual_name(values)}, relevance.ignored
    return values, relevance.ignored | {"name"}


def _usual_name(source: Mapping[str, Any]) -> str | None:
    """As `data.sources.source_name` has it, for sources that may be wrong too."""
    path, hub = source["path"], source["hub"]
    return Path(path).stem if path else Path(hub).name if hub else source["toy"]


def _given(hint: Any) -> Any:
    """The type of a key that isn't left at None."""
    if isinstance(hint, types.UnionType):
        return next(inner for inner in typing.get_args(hint) if inner is not types.NoneType)
    return hint


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(schema)}
    return {name: hint for name, hint in typing.get_type_hints(schema).items() if name in names}


@functools.cache
def _defaults(schema: type) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(schema):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            is_settings = dataclasses.is_dataclass(made) and not isinstance(made, type)
            found[field.name] = dataclasses.asdict(made) if is_settings else made
    return found
