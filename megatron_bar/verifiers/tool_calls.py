"""Tool calls: the right functions with the right arguments, as BFCL compares them.

What a reference looks like stands in call_references.py, what counts as a call in call_formats.py.
The order of calls doesn't matter. Text is compared without case, spaces and the marks ,./-_*^ . An
empty list of expected calls says that no function fits: none may be called then, nor tried to be.
Arguments without names are wrong, as in BFCL: the order in a schema is no promise.

Where it differs from BFCL's checker:
- A response that says nothing, or only thinks, earns nothing, also where no function fits.
- Calls are matched so that as many as possible fit; BFCL gives each the first that does.
- Right values that list nothing stand for an empty list.
- True isn't 1, in lists neither; a tuple passes for a list, and any type for `any`, which is text
  alone in BFCL; a variable's name is text, too.
- Java and JavaScript values are compared as the values that they stand for. BFCL reads their source
  text (`"true"`, `new ArrayList<>()`), so its sets for these languages can't be scored with this.
"""

from __future__ import annotations

import re
from typing import Any

from megatron_bar.verifiers.call_formats import Call, NotCalls, parse_calls
from megatron_bar.verifiers.call_references import (
    Expected,
    Function,
    Kind,
    read_reference,
)

_IGNORED = re.compile(r"[ ,./\-_*^]")


def score(prompt: str, response: str, reference: Any) -> float:
    """1 if the response makes the expected calls and no others, else 0.

    Raises BarError for a reference of another shape.
    """
    expected = read_reference(reference)
    try:
        calls = parse_calls(response, expected.functions)
    except NotCalls:
        return 0.0
    return float(
        len(calls) == len(expected.calls)
        and _matched(
            [
                [
                    number
                    for number, wanted in enumerate(expected.calls)
                    if _is_right(call, wanted, expected.functions[wanted.name])
                ]
                for call in calls
            ]
        )
    )


def _matched(choices: list[list[int]]) -> bool:
    """Whether each call can have one of its choices for itself alone.

    One call after the other takes a choice; where all of its are taken, those who have them are
    asked to move on (augmenting paths).
    """
    owners: dict[int, int] = {}

    def settle(call: int, asked: set[int]) -> bool:
        free = [choice for choice in choices[call] if choice not in owners]
        for choice in free[:1] or choices[call]:
            if choice in asked:
                continue
            asked.add(choice)
            if choice not in owners or settle(owners[choice], asked):
                owners[choice] = call
                return True
        return False

    return all(settle(call, set()) for call in range(len(choices)))


def _is_right(call: Call, wanted: Expected, function: Function) -> bool:
    if call.name != wanted.name:
        return False
    needed = function.required | set(filter(wanted.needs, wanted.allowed))
    return needed <= set(call.arguments) and all(
        parameter in wanted.allowed
        and (function.parameters is None or parameter in function.parameters)
        and _is_allowed(
            value,
            wanted.allowed[parameter],
            (function.parameters or {}).get(parameter, Kind()),
            wanted.plain,
        )
        for parameter, value in call.arguments.items()
    )


def _is_allowed(value: Any, allowed: list[Any], kind: Kind, plain: bool) -> bool:
    """Whether a value has the parameter's type and is one of the right ones.

    A type that the schema doesn't name may pass if a right value has it: BFCL lists, for example,
    the name of a variable for a parameter that takes an array.
    """
    same = _equal if plain else _same
    rights = [right for right in allowed if plain or right != ""]
    if not kind.has(value) and all(type(value) is not type(right) for right in rights):
        return False
    # An empty text is as good as none where the parameter may be left out.
    return (value == "" and "" in allowed) or any(same(value, right) for right in rights)


def _same(value: Any, right: Any) -> bool:
    """Equal to a right value, in which each field of an object lists what is right."""
    if isinstance(value, list) and isinstance(right, list):
        return len(value) == len(right) and all(map(_same, value, right))
    if isinstance(value, dict) and isinstance(right, dict):
        needed = {key for key, options in right.items() if "" not in options}
        return needed <= set(value) <= set(right) and all(
            any(_equal(content, option) for option in right[key]) for key, content in value.items()
        )
    return _equal(value, right)


def _equal(value: Any, right: Any) -> bool:
    """Equal, text but for its dress."""
    if isinstance(value, str) and isinstance(right, str):
        return _bare(value) == _bare(right)
    if isinstance(value, bool) or isinstance(right, bool):
        return value is right
    if isinstance(value, list) and isinstance(right, list):
        return len(value) == len(right) and all(map(_equal, value, right))
    if isinstance(value, dict) and isinstance(right, dict):
        return set(value) == set(right) and all(
            _equal(content, right[key]) for key, content in value.items()
        )
    return value == right


def _bare(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')
