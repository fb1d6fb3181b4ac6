"""Tool calls: the right functions with the right arguments, as BFCL compares them.

The reference has `functions`, what was offered (name and parameters as a JSON schema; BFCL's
`dict`, `float` and `tuple` too), and `calls`, what is expected: a list of {name: {parameter:
[values that are right]}}. A value of "" says that the parameter may be left out, unless its schema
requires it. An empty list of calls says that no function fits, and none may be called.

The order of calls doesn't matter. Text is compared without case, spaces and the marks ,./-_*^ .
"""

from __future__ import annotations

import re
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.call_formats import Call, NotCalls, parse_calls
from megatron_bar.verifiers.reference import structured

_IGNORED = re.compile(r"[ ,./\-_*^]")
# What a parameter's type lets pass. Not isinstance: True is no number here.
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "float": (float, int), "number": (float, int),
    "boolean": (bool,), "array": (list,), "tuple": (list,), "dict": (dict,), "object": (dict,),
}


def score(prompt: str, response: str, reference: Any) -> float:
    """1 if the response makes the expected calls and no others, else 0.

    Raises BarError for a reference of another shape.
    """
    match structured(reference, "tool call"):
        case {"functions": functions, "calls": [*expected]}:
            schemas = {function["name"]: function["parameters"]
                       for function in structured(functions, "functions")}
        case _:
            raise BarError("a tool call reference is an object with functions and calls")
    try:
        calls = parse_calls(response)
    except NotCalls:
        return 0.0
    return float(len(calls) == len(expected) and _matched(calls, expected, schemas))


def _matched(calls: list[Call], expected: list[dict[str, Any]], schemas: dict[str, Any]) -> bool:
    """Whether each call can be given an expected one of its own."""
    if not calls:
        return True
    first, *rest = calls
    return any(
        _is_right(first, wanted, schemas)
        and _matched(rest, expected[:index] + expected[index + 1:], schemas)
        for index, wanted in enumerate(expected)
    )


def _is_right(call: Call, wanted: dict[str, Any], schemas: dict[str, Any]) -> bool:
    ((name, allowed),) = wanted.items()
    if call.name != name or name not in schemas:
        return False
    schema = schemas[name]
    properties = schema.get("properties", {})
    missing = (set(schema.get("required", [])) | {
        parameter for parameter, values in allowed.items() if "" not in values
    }) - set(call.arguments)
    return not missing and all(
        parameter in properties and parameter in allowed
        and _is_allowed(value, allowed[parameter], properties[parameter])
        for parameter, value in call.arguments.items()
    )


def _is_allowed(value: Any, allowed: list[Any], schema: dict[str, Any]) -> bool:
    """Whether a value has the parameter's type and is one of the right ones.

    A type that the schema doesn't name may pass if a right value has it: BFCL lists, for example,
    the name of a variable for a parameter that takes an array.
    """
    if not _has_type(value, schema) and all(type(value) is not type(right) for right in allowed):
        return False
    return any(_same(value, right) for right in allowed if not (right == "" and value != ""))


def _has_type(value: Any, schema: dict[str, Any]) -> bool:
    kind = schema.get("type", "any")
    if kind == "any":
        return True
    if type(value) not in _TYPES.get(kind, ()):
        return False
    items = schema.get("items")
    return not (isinstance(value, list) and items) or all(_has_type(v, items) for v in value)


def _same(value: Any, right: Any) -> bool:
    """Equal, text but for its dress; in an object each field has a list of right values."""
    if isinstance(value, str) and isinstance(right, str):
        return _bare(value) == _bare(right)
    if isinstance(value, bool) or isinstance(right, bool):
        return value is right
    if isinstance(value, list) and isinstance(right, list):
        return len(value) == len(right) and all(map(_same, value, right))
    if isinstance(value, dict) and isinstance(right, dict):
        return _same_fields(value, right)
    return value == right


def _same_fields(value: dict[str, Any], right: dict[str, Any]) -> bool:
    needed = {key for key, options in right.items() if "" not in options}
    return needed <= set(value) <= set(right) and all(
        any(_same(content, option) for option in right[key]) for key, content in value.items()
    )


def _bare(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')
