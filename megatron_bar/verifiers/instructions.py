"""Instruction following: IFEval's verifiable constraints, strictly: all of them, or nothing.

The reference has IFEval's fields: `instruction_id_list`, and `kwargs` with the settings of each;
both also as JSON text, and numbers as text. A setting that is null counts as missing. What each
constraint asks stands in constraints.py; ours, not lm-eval's: docs/own-code.md says why.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.constraints import CONSTRAINTS, Language, Relation
from megatron_bar.verifiers.language import known_language
from megatron_bar.verifiers.reference import structured

# Of a longer answer nothing is followed: it's a loop.
_LONGEST = 20_000


def score(prompt: str, response: str, reference: Any) -> float:
    """1 if the response follows every instruction of the reference, else 0.

    Raises BarError for a reference that `read_reference` refuses.
    """
    return float(all(followed(response, reference)))


def followed(response: str, reference: Any) -> list[bool]:
    """Whether the response follows each instruction. An empty or endless one follows none."""
    checks = read_reference(reference)
    judged = 0 < len(response.strip()) <= _LONGEST
    return [judged and check(response) for check in checks]


def read_reference(reference: Any) -> list[Callable[[str], bool]]:
    """The check of each instruction, in order.

    Raises BarError for a reference of another shape, an instruction that isn't known, and settings
    that are missing, unknown or of another kind.
    """
    fields = structured(reference, "instruction")
    names, settings = (
        structured(fields.get(key) if isinstance(fields, dict) else None, "instruction")
        for key in ("instruction_id_list", "kwargs")
    )
    if not (
        isinstance(names, list)
        and isinstance(settings, list)
        and names
        and len(names) == len(settings)
    ):
        raise BarError(
            "an instruction reference is an object with instruction_id_list and "
            "kwargs, equally long lists"
        )
    return [_check(name, structured(given, "instruction")) for name, given in zip(names, settings)]


def _check(name: Any, given: Any) -> Callable[[str], bool]:
    if not isinstance(name, str) or name not in CONSTRAINTS:
        raise BarError(f"instruction {name!r} is unknown; there are {', '.join(CONSTRAINTS)}")
    if not isinstance(given, dict | None):
        raise BarError(f"kwargs of instruction {name} are an object, not {given!r}")
    given = {key: value for key, value in (given or {}).items() if value is not None}
    kinds = _settings(name)
    if unknown := sorted(map(str, given.keys() - kinds.keys())):
        raise BarError(
            f"instruction {name} has no setting {unknown[0]}; its settings: "
            f"{', '.join(kinds) or 'none'}"
        )
    if missing := sorted(kinds.keys() - given.keys()):
        raise BarError(f"instruction {name} needs {missing[0]} in kwargs")
    settings = {}
    for key, kind in kinds.items():
        try:
            settings[key] = _READERS[kind](given[key])
        except ValueError as error:
            raise BarError(f"instruction {name}: {key} is {error}, not {given[key]!r}") from None
    return functools.partial(CONSTRAINTS[name], **settings)


@functools.cache
def _settings(name: str) -> dict[str, Any]:
    """The settings of an instruction, and the kind of each."""
    kinds = typing.get_type_hints(CONSTRAINTS[name])
    return {key: kind for key, kind in kinds.items() if key not in ("text", "return")}


def _number(value: Any) -> int:
    """Also from text, and from the 3.0 that tables make of a 3."""
    try:
        number = int(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or (isinstance(value, float) and number != value):
        raise ValueError("a whole number")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        value = structured(value, "instruction")
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of texts")
    return value


def _relation(value: Any) -> Relation:
    try:
        return Relation(value)
    except ValueError:
        raise ValueError(f"one of {', '.join(one.value for one in Relation)}") from None


_READERS: dict[Any, Callable[[Any], Any]] = {
    int: _number,
    str: _text,
    list[str]: _texts,
    Relation: _relation,
    Language: lambda value: known_language(_text(value)),
}
