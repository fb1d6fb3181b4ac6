"""Forms of tool calls: OLMo's Python-like one, and JSON. Nothing is evaluated.

    <function_calls>weather(city="Bergen", days=2)
    play(song="Hey")</function_calls>

    <function_calls>[{"name": "weather", "arguments": {"city": "Bergen"}}]</function_calls>

Text around the tags is talk. Without tags a response counts as calls if all of it is one of the two
forms (`[weather(...), play(...)]` too), else as talk.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

_TAGGED = re.compile(r"<(function_calls|tool_call)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_END_TOKENS = re.compile(r"<\|(?:endoftext|im_end|pad)\|>")
_LONGEST = 10_000  # characters of calls
_WORDS = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True)
class Call:
    """One call: `name` may have dots; all arguments are by name, as plain data without tuples."""

    name: str
    arguments: dict[str, Any]


class NotCalls(Exception):
    """The error that what stands where calls belong isn't calls."""


def parse_calls(response: str) -> list[Call]:
    """The calls of a response, in order; none if it only talks.

    Raises NotCalls where tags hold something else.
    """
    tagged = [match.group(2) for match in _TAGGED.finditer(response)]
    if tagged:
        return [call for content in tagged for call in _parse(content)]
    try:
        return _parse(_END_TOKENS.sub("", response))
    except NotCalls:
        return []


def _parse(text: str) -> list[Call]:
    text = text.strip()
    if len(text) > _LONGEST:
        raise NotCalls
    if not text:
        return []
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _parse_python(text)
    return [_json_call(entry) for entry in (found if isinstance(found, list) else [found])]


def _json_call(entry: Any) -> Call:
    match entry:
        case {"name": str(name), "arguments": dict(arguments)} if len(entry) == 2:
            return Call(name, arguments)
        case {"name": str(name), "arguments": str(text)} if len(entry) == 2:
            try:
                arguments = json.loads(text)
            except (ValueError, RecursionError):
                raise NotCalls from None
            if isinstance(arguments, dict):
                return Call(name, arguments)
    raise NotCalls


def _parse_python(text: str) -> list[Call]:
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotCalls from None
    calls = []
    for statement in statements:
        if not isinstance(statement, ast.Expr):
            raise NotCalls
        value = statement.value
        calls += value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    try:
        return [_python_call(call) for call in calls]
    except RecursionError:
        raise NotCalls from None


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise NotCalls
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise NotCalls
        arguments[keyword.arg] = _literal(keyword.value)
    return Call(_name(node.func), arguments)


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{_name(value)}.{name}"
    raise NotCalls


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name.lower() in _WORDS:
            return _WORDS[name.lower()]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            plain = [_literal(key) for key in keys]
            if all(isinstance(key, str) for key in plain):
                return dict(zip(plain, map(_literal, values)))
    raise NotCalls
