"""Reading the tool calls of a response. Nothing is evaluated.

Calls are written in Python's manner, or as JSON, as OLMo, OpenAI, Llama, Qwen and Mistral do:

    <function_calls>weather(city="Bergen", days=2)
    play(song="Hey")</function_calls>

    {"name": "weather", "arguments": {"city": "Bergen"}}    or "parameters"; lists, line by line
    {"type": "function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Bergen\\"}"}}
    [TOOL_CALLS]weather[ARGS]{"city": "Bergen"}             or <function=weather>{...}</function>

What was thought (<think>) is no part of the answer. Between tags (<function_calls>, <tool_call>,
<|python_tag|>, [TOOL_CALLS] and whatever else names calls of functions or tools) nothing but calls
may stand; text around them is talk. A response without tags is calls altogether, or talk that may
hold calls: JSON anywhere, and Python's form of a function that is offered, in a place where a
sentence of its own could stand. So "f(x=1) is of no use here" only mentions a function.
"""

# ruff: noqa: RUF001 (DeepSeek writes its tags with a wide bar)
from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

_LONGEST = 20_000  # characters of an answer without its thoughts; what is longer is a loop
_NEAR = 80  # characters before a function's name, by which a call is told from a mention
_MOST = 100  # places amid talk that look like calls
_THOUGHT = re.compile(r"<(think(?:ing)?)>.*?(?:</\1>|\Z)", re.DOTALL)
_END_TOKENS = re.compile(r"<\|(?:endoftext|end_of_text|im_end|eot_id|eom_id|pad)\|>|</s>")
# Not only tags whose content is read: an answer with any of these means to call something.
_TAG = re.compile(
    r"<\|python_tag\|>|\[/?TOOL_CALLS\]|(?=<function=|<invoke )|</(?:function|invoke)>"
    r"|(?i:<[|｜]?/?(?:start_|end_)?(?:function|tool)(?:[_▁]?(?:calls?|use|code)[a-z_▁]{0,20})?[|｜]?>)"
)
_CLOSING = re.compile(r"[<\[][|｜]?/|<end_|[_▁]end[|｜]?>")
_FENCED = re.compile(r"(```|~~~)(?:[\w+-]*(?=[\s{\[]))?(.*)\1", re.DOTALL)
_BETWEEN = re.compile(r"(?:[\s,;\[\]]|#[^\n]*)*")  # of calls in Python's manner
_BETWEEN_JSON = re.compile(r"[\s,;]*")
_NAMED = re.compile(r"<function=([^<>\n]{1,200})>\s*|([\w.:/-]{1,200})\[ARGS\]\s*")
_JSON_CALL = re.compile(
    r'\{\s*"(?:name|arguments|parameters|id|call_id|index|type|role|content'
    r'|function|function_call|tool_calls)"\s*:'
)
_CALL_KEYS = {
    "name",
    "function",
    "arguments",
    "parameters",
    "id",
    "call_id",
    "index",
    "type",
    "status",
}
# Of a call in Python's manner; names and parameters may be such that Python's parser takes none.
_HEAD = re.compile(r"([^\W\d][\w.:/-]*)[ \t]*\(")
# A string that isn't closed reaches to the end: no text is searched twice.
_TOKEN = re.compile(
    r"'''.*?(?:'''|\Z)|\"\"\".*?(?:\"\"\"|\Z)|'(?:[^'\\]|\\.)*(?:'|\Z)"
    r"|\"(?:[^\"\\]|\\.)*(?:\"|\Z)|[()\[\]{},]",
    re.DOTALL,
)
_PARAMETER = re.compile(r"[^\W\d][^()\[\]{}'\",]*")
_SENTENCE_BEFORE = re.compile(r"[\s\[`*,;-]*|.*[.:!?][\"')*`]*\s+[\[`*]*", re.DOTALL)
_SENTENCE_AFTER = re.compile(r"[\]`*.,;!]*(?:\s*\Z|[ \t]*(?:\n|#)|[ \t]+(?=[^\W\da-z_]))")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True)
class Call:
    """One call: `name` may have dots; all arguments are by name, as plain data without tuples."""

    name: str
    arguments: dict[str, Any]


class NotCalls(Exception):
    """The error that what stands where calls belong can't be read as calls."""


def parse_calls(response: str, offered: Collection[str] = ()) -> list[Call]:
    """The calls of a response, in order; none if it only talks.

    `offered` names the functions that Python's form is looked for amid talk.

    Raises NotCalls where calls belong and something else stands, arguments without names too, and
    for a response that says nothing, beside its thoughts, or is too long.
    """
    text = _END_TOKENS.sub("", _THOUGHT.sub("", response).rpartition("</think>")[2])
    if not text.strip() or len(text) > _LONGEST:
        raise NotCalls
    try:
        contents = _tagged(text)
        if contents:
            return [call for content in contents for call in _read(content)]
        try:
            return _read(text)
        except NotCalls:
            return _amid_talk(text, offered)
    except (RecursionError, MemoryError):  # of JSON or Python that is nested too deeply
        raise NotCalls from None


def _tagged(text: str) -> list[str]:
    """What follows an opening tag or comes before a closing one, up to the tag next to it."""
    contents, start, opened = [], 0, False
    for tag in _TAG.finditer(text):
        closes = _CLOSING.search(tag[0]) is not None
        if opened or closes:
            contents.append(text[start : tag.start()])
        start, opened = tag.end(), not closes
    return [*contents, text[start:]] if opened else contents


def _read(text: str) -> list[Call]:
    """All of a text as calls. Raises NotCalls for any other."""
    text = text.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[2].strip()
    for read in (_read_json, _read_python):
        try:
            return list(read(text))
        except NotCalls:
            pass
    if text.startswith(("[", "{")):
        return _json_calls(_value(text))  # JSON with Python's quotes and words
    raise NotCalls


def _read_json(text: str) -> Iterator[Call]:
    """Calls as JSON values, one after the other."""
    place = 0
    while (place := _behind(_BETWEEN_JSON, text, place)) < len(text):
        named = _NAMED.match(text, place)
        value, place = _decoded(text, named.end() if named else place)
        yield from _json_calls(
            {"name": named[1] or named[2], "arguments": value} if named else value
        )


def _behind(between: re.Pattern[str], text: str, place: int) -> int:
    """The place after what stands between two calls."""
    found = between.match(text, place)
    return found.end() if found else place


def _decoded(text: str, place: int) -> tuple[Any, int]:
    """The JSON value at a place, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, place)
    except ValueError:
        raise NotCalls from None


def _json_calls(value: Any) -> list[Call]:
    match value:
        case [*entries] | {"tool_calls": [*entries]}:
            return [call for entry in entries for call in _json_calls(entry)]
        case {"function": dict(call)} | {"function_call": dict(call)}:
            return _json_calls(call)
        case dict() if _CALL_KEYS.issuperset(value):
            name = value.get("name", value.get("function"))
            given = [value[key] for key in ("arguments", "parameters") if key in value]
            if isinstance(name, str) and len(given) == 1:
                return [Call(name, _json_arguments(given[0]))]
    raise NotCalls


def _json_arguments(arguments: Any) -> dict[str, Any]:
    """An object, also as text; nothing at all where a function takes no arguments."""
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise NotCalls from None
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, dict):
        raise NotCalls
    return arguments


def _read_python(text: str) -> Iterator[Call]:
    """Calls in Python's manner, with commas, brackets or new lines between them."""
    place = 0
    while (place := _behind(_BETWEEN, text, place)) < len(text):
        head = _HEAD.match(text, place)
        if head is None:
            raise NotCalls
        arguments, place = _arguments(text, head.end())
        if arguments is None:
            raise NotCalls
        yield _python_call(head[1], arguments)


def _arguments(text: str, place: int) -> tuple[list[str] | None, int]:
    """The texts of a call's arguments, which begin at `place`, and the end of the call.

    None for a call that isn't closed.
    """
    arguments, start, depth = [], place, 1
    for token in _TOKEN.finditer(text, place):
        if token[0] in ("(", "[", "{"):
            depth += 1
        elif token[0] in (")", "]", "}"):
            depth -= 1
        if depth == 0 or (depth == 1 and token[0] == ","):
            arguments.append(text[start : token.start()])
            start = token.end()
        if depth == 0:
            return arguments if arguments[-1].strip() else arguments[:-1], start
    return None, place


def _python_call(name: str, texts: list[str]) -> Call:
    arguments: dict[str, Any] = {}
    for text in texts:
        # Not parsed as Python, in which `from` or `user-id` is no name.
        parameter, _, value = text.partition("=")
        parameter = parameter.strip()
        if not _PARAMETER.fullmatch(parameter) or parameter in arguments:
            raise NotCalls
        arguments[parameter] = _value(value)
    return Call(name, arguments)


def _value(text: str) -> Any:
    if not text.strip():
        raise NotCalls
    try:
        return _literal(ast.parse(f"({text}\n)", mode="eval").body)
    except (SyntaxError, ValueError):
        raise NotCalls from None


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
        case ast.Dict(keys=keys, values=values):
            # `**others` has no key.
            plain = [_literal(key) for key in keys if key is not None]
            if len(plain) == len(keys) and all(isinstance(key, str) for key in plain):
                return dict(zip(plain, map(_literal, values)))
    raise NotCalls


def _amid_talk(text: str, offered: Collection[str]) -> list[Call]:
    """The calls in a text that isn't calls altogether, in order."""
    found: list[tuple[int, int, list[Call]]] = list(_json_amid_talk(text))
    for start, end, name, arguments in _python_amid_talk(text, offered):
        if not any(first <= start < last for first, last, _ in found):
            found.append((start, end, [_python_call(name, arguments)]))
    return [call for _, _, calls in sorted(found, key=lambda entry: entry[0]) for call in calls]


def _json_amid_talk(text: str) -> Iterator[tuple[int, int, list[Call]]]:
    """Start, end and calls of the objects that are calls; others that look alike are data."""
    place = 0
    while start := _JSON_CALL.search(text, place):
        try:
            value, end = _decoded(text, start.start())
        except NotCalls:
            place = start.end()
            continue
        with contextlib.suppress(NotCalls):
            yield start.start(), end, _json_calls(value)
        place = end


def _python_amid_talk(
    text: str, offered: Collection[str]
) -> Iterator[tuple[int, int, str, list[str]]]:
    """Start, end, name and arguments of calls of functions that are offered."""
    names = "|".join(re.escape(name) for name in sorted(offered, key=len, reverse=True))
    last = seen = 0
    for head in re.finditer(rf"(?<![\w.-])({names})\(", text) if names else ():
        near = max(last, head.start() - _NEAR)
        before = text[max(near, text.rfind("\n", near, head.start()) + 1) : head.start()]
        if head.start() < last or not _SENTENCE_BEFORE.fullmatch(before):
            continue
        seen += 1
        if seen > _MOST:
            raise NotCalls
        arguments, end = _arguments(text, head.end())
        if arguments is not None and (
            _SENTENCE_AFTER.match(text, end) or re.match(rf"[\s,;]*(?:{names})\(", text[end:])
        ):
            yield head.start(), end, head[1], arguments
            last = end
