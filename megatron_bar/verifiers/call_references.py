"""References of tool calls: the functions that were offered, and the calls that are expected.

Functions are a list of {name, parameters}, the parameters as a JSON schema (BFCL's `dict`, `float`
and `tuple` too), or OpenAI's {type, function}. Calls are

- BFCL's: {name: {parameter: [values that are right]}}; "" among them says that the parameter may be
  left out, unless its schema requires it. The fields of an object have such lists, too; objects in
  these are plain. A value that is no list is the one that is right.
- OpenAI's, or {name, arguments}: all values plain, arguments also as JSON text.

A key whose value is null counts as missing, since tables (Parquet) fill records up with nulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.reference import structured

_FUNCTIONS = ("functions", "function", "tools")
_CALLS = ("calls", "ground_truth", "tool_calls")
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("string", "str", "char"), (str,)),
    **dict.fromkeys(("integer", "int", "long", "short", "byte", "bigint"), (int,)),
    **dict.fromkeys(("float", "number", "double"), (float, int)),
    **dict.fromkeys(("boolean", "bool"), (bool,)),
    **dict.fromkeys(("array", "list", "tuple", "arraylist"), (list,)),
    **dict.fromkeys(("object", "dict", "hashmap"), (dict,)),
    **dict.fromkeys(("null", "none"), (type(None),)),
}


@dataclass(frozen=True)
class Kind:
    """The values that a parameter takes; `types` None: anything. `items` is what a list holds."""

    types: frozenset[type] | None = None
    items: Kind | None = None

    def has(self, value: Any) -> bool:
        # Not isinstance: True is no number here.
        if self.types is not None and type(value) not in self.types:
            return False
        return self.items is None or not isinstance(value, list) or all(map(self.items.has, value))


@dataclass(frozen=True)
class Function:
    """An offered function; `parameters` None: nothing is known of them, and any may be given."""

    parameters: dict[str, Kind] | None
    required: frozenset[str]


@dataclass(frozen=True)
class Expected:
    """An expected call: the values that are right for each parameter.

    `plain`: they are what they are. Otherwise they are read as BFCL means them: "" says that the
    parameter may be left out, and fields of an object have lists of such values, too.
    """

    name: str
    allowed: dict[str, list[Any]]
    plain: bool = False

    def needs(self, parameter: str) -> bool:
        return self.plain or "" not in self.allowed[parameter]

    def example(self) -> dict[str, Any]:
        """Arguments that are right: the first value of each parameter that has one."""
        if self.plain:
            return {parameter: values[0] for parameter, values in self.allowed.items()}
        return {
            parameter: _first(values)
            for parameter, values in self.allowed.items()
            if values != [""]
        }


@dataclass(frozen=True)
class CallReference:
    functions: dict[str, Function]
    calls: list[Expected]


def read_reference(reference: Any) -> CallReference:
    """Raises BarError for a reference of another shape, with what is wrong with it."""
    fields = structured(reference, "tool call")
    functions, calls = (_field(fields, names) for names in (_FUNCTIONS, _CALLS))
    if not isinstance(functions, list) or not isinstance(calls, list):
        raise BarError(
            "a tool call reference is an object with functions and calls, each a list "
            "(or BFCL's function and ground_truth)"
        )
    offered = dict(map(_function, functions))
    expected = list(map(_call, calls))
    for call in expected:
        if call.name not in offered:
            raise BarError(
                f"a tool call reference expects a call of {call.name!r}, which isn't "
                f"among its functions: {', '.join(offered) or 'none'}"
            )
    return CallReference(offered, expected)


def _field(fields: Any, names: tuple[str, ...]) -> Any:
    """The field of one of these names that is there, which may be JSON text."""
    if not isinstance(fields, dict):
        return None
    found = next((fields[name] for name in names if fields.get(name) is not None), None)
    return structured(found, "tool call")


def _function(entry: Any) -> tuple[str, Function]:
    match entry:
        case {"function": {"name": str()} as inner}:
            return _function(inner)
        case {"name": str(name)}:
            return name, _signature(name, _schema(entry.get("parameters"), name))
    raise BarError(f"a function of a tool call reference has no name: {_short(entry)}")


def _signature(name: str, schema: dict[str, Any]) -> Function:
    properties, required = schema.get("properties"), schema.get("required") or []
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        raise BarError(
            f"function {name} of a tool call reference: required is a list of names, "
            f"not {_short(required)}"
        )
    if properties is None:
        return Function(None, frozenset(required))
    return Function(
        {
            parameter: _kind(kind, f"{name}, parameter {parameter}")
            for parameter, kind in _schema(properties, name).items()
            if kind is not None
        },
        frozenset(required),
    )


def _schema(schema: Any, where: str) -> dict[str, Any]:
    if schema is None:
        return {}
    if not isinstance(schema, dict):
        raise BarError(
            f"function {where} of a tool call reference: a JSON schema is an object, "
            f"not {_short(schema)}"
        )
    return schema


def _kind(schema: Any, where: str) -> Kind:
    """What a JSON schema lets pass, as far as types say it; other rules are left to the values."""
    schema = _schema(schema, where)
    names = schema.get("type")
    names = names if isinstance(names, list) else [names] if names is not None else []
    if not all(isinstance(name, str) for name in names):
        raise BarError(
            f"function {where} of a tool call reference: a type is a name, or a list of "
            f"names, not {_short(schema['type'])}"
        )
    kinds = [
        Kind(frozenset(_TYPES[name.lower()]) if name.lower() in _TYPES else None) for name in names
    ]
    for key in ("anyOf", "oneOf"):
        choices = schema.get(key)
        kinds += [_kind(choice, where) for choice in choices] if isinstance(choices, list) else []
    if schema.get("nullable") is True and kinds:
        kinds.append(Kind(frozenset({type(None)})))
    items = schema.get("items")
    items = [_kind(items, where)] if isinstance(items, dict) else []
    items += [kind.items for kind in kinds if kind.items is not None]
    types = [kind.types for kind in kinds if kind.types is not None]
    known = bool(kinds) and len(types) == len(kinds)
    return Kind(
        frozenset().union(*types) if known else None,
        items[0] if len(items) == 1 else None,
    )


def _call(entry: Any) -> Expected:
    match entry:
        case {"function": {"name": str()} as inner}:
            return _call(inner)
        case {"name": str(name), "arguments": values} | {"name": str(name), "parameters": values}:
            values = structured(values, f"tool call ({name})")
            if isinstance(values, dict) or values is None:
                return Expected(
                    name,
                    {parameter: [value] for parameter, value in (values or {}).items()},
                    plain=True,
                )
        case dict():
            named = {name: values for name, values in entry.items() if values is not None}
            match [*(named or entry).items()]:
                case [(str(name), dict() | None as values)]:
                    return Expected(
                        name,
                        {
                            parameter: [_in_lists(value) for value in _listed(options)]
                            for parameter, options in (values or {}).items()
                            if options is not None
                        },
                    )
    raise BarError(
        "a call of a tool call reference is {name: {parameter: [values]}} or "
        f"{{name, arguments}}, not {_short(entry)}"
    )


def _listed(options: Any) -> list[Any]:
    return options if isinstance(options, list) and options else [options]


def _in_lists(value: Any) -> Any:
    """The value with a list for each field of its objects."""
    if isinstance(value, list):
        return [_in_lists(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _listed(field) for key, field in value.items()}
    return value


def _first(values: Sequence[Any]) -> Any:
    return _chosen(next((value for value in values if value != ""), ""))


def _chosen(value: Any) -> Any:
    if isinstance(value, list):
        return [_chosen(entry) for entry in value]
    if isinstance(value, dict):
        return {
            key: next((field for field in fields if field != ""), "")
            for key, fields in value.items()
            if fields != [""]
        }
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
