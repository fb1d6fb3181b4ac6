"""Values as the fields of a dataclass want them; all that they don't want is reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_bar.recipe.fields import FILE, KEYS_OF_RECIPE
from megatron_bar.recipe.paths import located
from megatron_bar.recipe.renamed import renamed, tell_renamed
from megatron_bar.runtime.errors import raise_all
from megatron_bar.runtime.plain_yaml import NULL, Document, plain

_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_LARGEST_WHOLE = 2**53  # up to which a float such as 1e6 is that very number
_FEW = 12  # keys that a message can list


def keys_of(document: Document, schema: type, folder: Path | None = None) -> dict[str, Any]:
    """The keys of `document`, each value of the type that `schema` gives it.

    With a `folder`, which files are named from, this is a recipe: `${...}` is left to be resolved,
    and a part that has no value, such as a domain, is None, for `layers.merged` to take away.
    Former names of keys are understood, with a hint.

    Raises BarError for keys that `schema` hasn't and values that aren't of their type, a line each.
    """
    if document.root is None or document.root.tag == NULL:
        return {}
    reader = _Reader(document, folder)
    found = reader.value(document.root, schema, "")
    raise_all(reader.faults)
    for (former, present), place in reader.former.items():
        tell_renamed(place, former, present)
    return found


def filled(default: Any, keys: Mapping[str, Any]) -> Any:
    """The dataclass `default` with what `keys_of` found in place of its own values."""
    values = {}
    for name, value in keys.items():
        held = getattr(default, name)
        inner = dataclasses.is_dataclass(held) and isinstance(value, Mapping)
        values[name] = filled(held, value) if inner else value
    return dataclasses.replace(default, **values)


def as_type(text: str, hint: Any) -> Any:
    """`text` as a bool, int, float or str. Raises ValueError that says what it should be."""
    if hint is str:
        return text
    if hint is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError("true or false")
        return _BOOLEANS[text.lower()]
    what = "a whole number" if hint is int else "a number"
    try:
        number = float(text.lower().replace(".inf", "inf"))
    except ValueError:
        raise ValueError(what) from None
    if hint is float:
        if math.isnan(number):
            raise ValueError(what)
        return number
    try:
        return int(text)
    except ValueError:  # such as 1e6
        if not (number.is_integer() and abs(number) <= _LARGEST_WHOLE):
            raise ValueError(what) from None
        return int(number)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that isn't known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(known)}" if len(known) <= _FEW else ""


@functools.cache
def field_types(schema: type) -> dict[str, Any]:
    """Each field's type, by its name."""
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


@functools.cache
def without_none(hint: Any) -> tuple[Any, bool]:
    """The type that `X | None` allows beside None, and whether it allows None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        allowed = [each for each in typing.get_args(hint) if each is not type(None)]
        if len(allowed) == 1:
            return allowed[0], True
    return hint, False


class _Reader:
    """One document on its way to typed values. `faults` are lines for the user."""

    def __init__(self, document: Document, folder: Path | None) -> None:
        self.document = document
        self.folder = folder
        self.faults: list[str] = []
        self.former: dict[tuple[str, str], str] = {}  # and present name: where it was first met

    def value(self, node: yaml.Node, hint: Any, key: str, file: str | None = None) -> Any:
        """`node` as `hint`; `key` is where it stands, and `file` what kind of path it is."""
        hint, optional = without_none(hint)
        kind = typing.get_origin(hint) or hint
        if node.tag == NULL and (optional or kind is Any):
            return None
        if self.folder is not None and isinstance(node, yaml.ScalarNode) and "${" in node.value:
            return located(node.value, self.folder, file)
        if kind is Any:
            return plain(node)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self._fields(node, kind, key)
        if kind is dict:
            of = typing.get_args(hint)[1]
            return {
                name: self._member(value, of, _within(key, name))
                for name, (_, value) in self._members(node, key).items()
            }
        if kind is list:
            return self._items(node, typing.get_args(hint)[0], key, file)
        return self._scalar(node, kind, key, file)

    def _member(self, node: yaml.Node, hint: Any, key: str, file: str | None = None) -> Any:
        """One of several parts of a kind. In a recipe None takes it away from what is below."""
        if node.tag == NULL and self.folder is not None:
            return None
        return self.value(node, hint, key, file)

    def _fields(self, node: yaml.Node, schema: type, key: str) -> dict[str, Any]:
        hints, present = field_types(schema), renamed(schema)
        metadata = {field.name: field.metadata for field in dataclasses.fields(schema)}
        found = {}
        members = self._members(node, key)
        for name, (written, value) in members.items():
            if name in present:
                name = self._present_name(written, present[name], key, members)
            if name not in hints:
                self._fault(
                    written,
                    f"{_within(key, name)}: there is no such key{did_you_mean(name, hints)}",
                )
                continue
            hint = hints[name]
            if KEYS_OF_RECIPE in metadata[name]:
                hint = types.GenericAlias(dict, (str, schema | None))
            found[name] = self.value(value, hint, _within(key, name), metadata[name].get(FILE))
        return found

    def _present_name(
        self, written: yaml.Node, present: str, key: str, members: Mapping[str, Any]
    ) -> str:
        """What the former name `written` is called now. Noted, for a hint."""
        if present in members:
            self._fault(
                written,
                f"{_within(key, written.value)} is called {present} now, which is "
                f"given, too; leave {written.value} out",
            )
        self.former.setdefault((written.value, present), self.document.at(written))
        return present

    def _members(self, node: yaml.Node, key: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """By key, the key and its value. Nothing written is no keys."""
        if isinstance(node, yaml.MappingNode):
            return {name.value: (name, value) for name, value in node.value}
        if node.tag != NULL:
            self._fault(
                node, f"{key or 'this'} is {_shown(node)} and should be keys, as in {{key: value}}"
            )
        return {}

    def _items(
        self, node: yaml.Node, hint: Any, key: str, file: str | None
    ) -> list[Any] | dict[str, Any]:
        """A list, or by their numbers items to change in one."""
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(item, hint, _within(key, str(number)), file)
                for number, item in enumerate(node.value)
            ]
        if isinstance(node, yaml.MappingNode):
            found = {}
            for name, value in node.value:
                if name.value.isdecimal():
                    found[name.value] = self._member(value, hint, _within(key, name.value), file)
                else:
                    self._fault(
                        name,
                        f"{key} is a list, and {name.value!r} is not the number of "
                        "an item; they are counted from 0",
                    )
            return found
        if node.tag != NULL:
            self._fault(node, f"{key} is {_shown(node)} and should be a list, as in [{node.value}]")
        return []

    def _scalar(self, node: yaml.Node, hint: type, key: str, file: str | None) -> Any:
        if node.tag == NULL:
            self._fault(node, f"{key} has no value")
            return None
        if not isinstance(node, yaml.ScalarNode):
            what = "a text" if hint is str else "one value"
            self._fault(node, f"{key} is {_shown(node)} and should be {what}")
            return None
        if file is not None and self.folder is not None:
            return located(node.value, self.folder, file)
        try:
            return as_type(node.value, hint)
        except ValueError as error:
            self._fault(node, f"{key} is {_shown(node)} and should be {error}")
            return None

    def _fault(self, node: yaml.Node, message: str) -> None:
        self.faults.append(f"{self.document.at(node)}: {message}")


def _within(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "keys"
