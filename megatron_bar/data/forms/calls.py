"""Functions and calls of them, from JSON as OpenAI writes it to the text that templates show.

Calls become lines such as `weather(city="Bergen", days=2)`, or a JSON list where names can't be
written so; the verifier `tool_calls` reads both.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping
from typing import Any

from megatron_bar.data.json_text import NotJson, parse_json
from megatron_bar.runtime.errors import BarError

_NAMES_OF_ARGUMENTS = ("arguments", "parameters")


def functions_text(functions: Any) -> Any:
    """The functions on offer as JSON text, without OpenAI's wrapper; text stays as it is."""
    if isinstance(functions, Mapping):
        functions = [functions]
    if not isinstance(functions, list):
        return functions
    offered = []
    for number, entry in enumerate(functions, 1):
        function = entry.get("function", entry) if isinstance(entry, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BarError(f"function {number} that is offered has no name")
        offered.append(function)
    return _json(offered)


def calls_text(calls: Any, is_json: bool = False) -> str:
    """Calls as text; text stays as it is, unless it `is_json`.

    Raises BarError for calls without a name, or whose arguments aren't an object.
    """
    if isinstance(calls, str):
        if not is_json:
            return calls
        calls = parse_json(calls)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise BarError(f"calls are {type(calls).__name__}, not a list")
    made = [_call(call, number) for number, call in enumerate(calls, 1)]
    if all(_is_dotted(name) and all(map(_is_name, arguments)) for name, arguments in made):
        return "\n".join(
            f"{name}({', '.join(f'{key}={_json(value)}' for key, value in arguments.items())})"
            for name, arguments in made
        )
    return _json([{"name": name, "arguments": arguments} for name, arguments in made])


def _call(call: Any, number: int) -> tuple[str, dict[str, Any]]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BarError(f"call {number} has no name of a function")
    arguments = next((function[key] for key in _NAMES_OF_ARGUMENTS if key in function), None)
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = parse_json(arguments)
        except NotJson as error:
            raise BarError(f"the arguments of call {number} are text, but {error}") from None
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise BarError(
            f"the arguments of call {number} are {type(arguments).__name__}, not an object"
        )
    return function["name"], arguments


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise BarError("a number of a function is infinite or none at all") from None


def _is_dotted(name: str) -> bool:
    return all(map(_is_name, name.split(".")))


def _is_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)
