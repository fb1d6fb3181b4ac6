"""Tool calls in every form that models write."""

# ruff: noqa: RUF001 (DeepSeek writes its tags with a wide bar)
from __future__ import annotations

import random
import time

import pytest

from megatron_bar.verifiers import tool_calls
from megatron_bar.verifiers.call_formats import Call, NotCalls, parse_calls

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (
            'Sure. <function_calls>f(a="x", b=-2)\nlib.g()</function_calls>',
            [Call("f", {"a": "x", "b": -2}), Call("lib.g", {})],
        ),
        (
            '[f(a=[1, (2, 3)], b={"k": true}), g(c=None)]',
            [Call("f", {"a": [1, [2, 3]], "b": {"k": True}}), Call("g", {"c": None})],
        ),
        ('{"name": "f", "arguments": {"a": 1}}', [Call("f", {"a": 1})]),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
            '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
            [Call("f", {"a": 1}), Call("g", {})],
        ),
        ("Just talk (about f).", []),
        ("<function_calls></function_calls>", []),
    ],
)
def test_calls_are_read(text, calls):
    assert parse_calls(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "f(1)",
        "f(a=__import__('os').system('true'))",
        "f(a=1, a=2)",
        "f(**{'a': 1})",
        "f(a=g())",
        "f(a=x)",
        "f",
        "a = f()",
        "f(a=1)(b=2)",
        "{" * 1000,
        '{"name": "f"}',
        "import os",
    ],
)
def test_what_is_no_call(text):
    with pytest.raises(NotCalls):
        parse_calls(f"<function_calls>{text}</function_calls>")


FUNCTIONS = [
    {
        "name": "go",
        "parameters": {
            "type": "dict",
            "required": ["to"],
            "properties": {
                "to": {"type": "string"},
                "fast": {"type": "boolean"},
                "miles": {"type": "float"},
                "count": {"type": "integer"},
                "stops": {"type": "array", "items": {"type": "string"}},
            },
        },
    }
]
GO = {
    "functions": FUNCTIONS,
    "calls": [
        {
            "go": {
                "to": ["New York", "NYC"],
                "fast": [True, ""],
                "miles": [3.0, ""],
                "count": [1, ""],
                "stops": [["A", "B"], ""],
            }
        }
    ],
}


@pytest.mark.parametrize(
    ("call", "score"),
    [
        ("go(to='new york')", 1),
        ("go(to='N.Y.C.')", 1),
        ("go(to='Boston')", 0),
        ("go()", 0),
        ("go(to='NYC', fast=True)", 1),
        ("go(to='NYC', fast=False)", 0),
        ("go(to='NYC', fast=1)", 0),
        ("go(to='NYC', miles=3)", 1),
        ("go(to='NYC', miles='3')", 0),
        ("go(to='NYC', count=1.0)", 0),
        ("go(to='NYC', count=True)", 0),
        ("go(to='NYC', stops=['a', 'b'])", 1),
        ("go(to='NYC', stops=['B', 'A'])", 0),
        ("go(to='NYC', stops=[1])", 0),
        ("go(to='')", 0),
        ("go(to='NYC', speed=1)", 0),
        ("went(to='NYC')", 0),
        ("go(to='NYC')\ngo(to='NYC')", 0),
    ],
)
def test_tool_calls(call, score):
    assert tool_calls.score("", f"<function_calls>{call}</function_calls>", GO) == score


def test_parallel_calls_in_any_order_each_for_one():
    wanted = {"functions": FUNCTIONS, "calls": [{"go": {"to": ["A", "B"]}}, {"go": {"to": ["A"]}}]}
    assert tool_calls.score("", "[go(to='A'), go(to='B')]", wanted) == 1
    assert tool_calls.score("", "[go(to='B'), go(to='B')]", wanted) == 0


def function(name="f", properties=None, **schema):
    properties = {"x": {"type": "integer"}} if properties is None else properties
    return {"name": name, "parameters": {"type": "dict", "properties": properties} | schema}


ONE = {"functions": [function()], "calls": [{"f": {"x": [1]}}]}
NONE_FITS = {"functions": [function()], "calls": []}
JSON = '{"name": "f", "arguments": {"x": 1}}'
SECOND = '{"name": "f", "arguments": {"x": 2}}'
LLAMA = '{"name": "f", "parameters": {"x": 1}}'
OPENAI = (
    '{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}'
)


@pytest.mark.parametrize(
    "response",
    [
        "<function_calls>f(x=1)</function_calls>",
        "f(x=1)",
        "[f(x=1)]",
        JSON,
        f"[{JSON}]",
        LLAMA,
        OPENAI,
        f"[{OPENAI}]",
        f'{{"role": "assistant", "content": null, "tool_calls": [{OPENAI}]}}',
        f'{{"function_call": {JSON}}}',
        '{"function": "f", "arguments": {"x": 1}}',
        "[{'name': 'f', 'arguments': {'x': 1}}]",
        '{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\\"x\\": 1}"}',
        f"```json\n{JSON}\n```",
        f"```json{JSON}```",
        "```python\nf(x=1)\n```",
        "```\nf(x=1)\n```",
        "```f(x=1)```",
        f"~~~\n{JSON}\n~~~",
        "<tool_call>\n```python\nf(x=1)\n```\n</tool_call>",
        f"<tool_call>```json\n{JSON}\n```</tool_call>",
        f"```xml\n<tool_call>{JSON}</tool_call>\n```",
        f"<think>I need {SECOND}, or not</think>\n{JSON}",
        "<think>\nf(x=3)\n</think>\n\nf(x=1)",
        f"so {SECOND}\n</think>\n\n{JSON}",
        f"Sure, I will do that.\n{JSON}",
        "I will.\nf(x=1)",
        "Calling: f(x=1)",
        "I will call it.\n\n[f(x=1)]",
        f"{JSON}\nThat is all.",
        "f(x=1)\nThis calls f.",
        "f(x=1) I have called it.",
        "Here:\n```python\nf(x=1)\n```\nDone.",
        "1. f(x=1)",
        "- `f(x=1)`",
        f"Here:\n```json\n{JSON}\n```\nDone.",
        f"<|python_tag|>{LLAMA}<|eom_id|>",
        "<|python_tag|>f(x=1)",
        "[f(x=1)]<|eot_id|>",
        f"[TOOL_CALLS] [{JSON}]</s>",
        '[TOOL_CALLS]f[ARGS]{"x": 1}',
        '<function=f>{"x": 1}</function>',
        '<tool_call>\n<function=f>{"x": 1}</function>\n</tool_call>',
        f"<tool_calls>[{JSON}]</tool_calls>",
        f"<tool_calls><tool_call>{JSON}</tool_call></tool_calls>",
        f"<TOOLCALL>[{JSON}]</TOOLCALL>",
        f"<|tool_call|>[{JSON}]<|/tool_call|>",
        f"{JSON}\n</tool_call>",
        "<tool>f(x=1)</tool>",
        "<|tool_call_start|>[f(x=1)]<|tool_call_end|>",
    ],
)
def test_a_call_is_one_in_every_form(response):
    assert tool_calls.score("", response, ONE) == 1
    assert tool_calls.score("", response.replace("1}", "7}").replace("x=1", "x=7"), ONE) == 0
    assert tool_calls.score("", response, NONE_FITS) == 0


@pytest.mark.parametrize(
    "response",
    [
        f"{JSON}\n{SECOND}",
        f"<|python_tag|>{LLAMA}; {SECOND}",
        f"Two:\n{JSON}\nand\n{SECOND}",
        f"<tool_call>{JSON}</tool_call>\n<tool_call>{SECOND}</tool_call>",
        f"{JSON}\nf(x=2)",
        "Ok.\nf(x=1)\nf(x=2)\nDone.",
        "Ok.\n[f(x=1), f(x=2)]",
        f"```json\n{JSON}\n```\n```json\n{SECOND}\n```",
    ],
)
def test_several_calls(response):
    two = ONE | {"calls": [{"f": {"x": [2]}}, {"f": {"x": [1]}}]}
    assert tool_calls.score("", response, two) == 1
    assert tool_calls.score("", response, ONE) == 0


@pytest.mark.parametrize(
    "response",
    [
        "f(1)",
        "<function_calls>f(1)</function_calls>",
        "Sure.\nf(1)",
        "f(x=y)",
        '<|python_tag|>f("a")',
        "<tool_call>None fits.</tool_call>",
        "a" * 30_000,
        "",
        " ",
        "<think>No",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f<｜tool▁call▁end｜>",
        "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value></tool_call>",
        '<invoke name="f"><parameter name="x">1</parameter></invoke>',
    ],
)
def test_an_attempt_is_neither_a_call_nor_talk(response):
    assert tool_calls.score("", response, ONE) == 0
    assert tool_calls.score("", response, NONE_FITS) == 0


@pytest.mark.parametrize(
    "response",
    [
        "None of my functions fits.",
        "I could call f(x=1) but that is of no use.",
        "The function `f(x=1)` isn't useful here.",
        f"<think>maybe {JSON}</think>None fits.",
        "```python\nprint('hi')\n```\nThat prints hi.",
        'The object {"a": 1} is JSON.',
        '{"name": "Bob", "id": 3} is a record.',
        "<function_calls></function_calls>",
        'I have {"name": "f", "description": "F", "parameters": {"type": "dict"}} alone.',
    ],
)
def test_talk_is_no_call(response):
    assert tool_calls.score("", response, NONE_FITS) == 1
    assert tool_calls.score("", response, ONE) == 0


def test_many_calls_take_no_time():
    count = 150
    same = {"functions": [function()], "calls": [{"f": {"x": [1]}}] * count}
    started = time.thread_time()
    for last, score in ((1, 1), (9, 0)):
        response = "\n".join(["f(x=1)"] * (count - 1) + [f"f(x={last})"])
        assert tool_calls.score("", response, same) == score
    # Each call fits two, so that the last makes all the others move on.
    chain = {
        "functions": [function()],
        "calls": [{"f": {"x": [n, n + 1]}} for n in range(1, count)] + [{"f": {"x": [1]}}],
    }
    assert tool_calls.score("", "\n".join(f"f(x={n})" for n in range(count, 0, -1)), chain) == 1
    assert tool_calls.score("", "\n".join(f"f(x={n})" for n in range(1, count + 1)), chain) == 1
    assert time.thread_time() - started < 5


_PIECES = (
    "f(",
    "x=",
    "1",
    ")",
    "[",
    "]",
    "{",
    "}",
    '"',
    "'",
    "\\",
    ",",
    ":",
    "\n",
    " ",
    "(",
    "f(x=1)",
    JSON,
    LLAMA,
    '{"name": ',
    '"arguments": ',
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "[ARGS]",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "<think>",
    "</think>",
    "```",
    "~~~json\n",
    ". ",
    "\x00",
    "\ud800",
    "\u0661",
    "1e999",
    "NaN",
    "9" * 5000,
    "-" * 400,
    "lambda: ",
    "'''",
    "#",
    "=",
    "**",
    "null",
    "None",
    "\u2028",
    "\u00e9",
    "<\uff5c",
)


@pytest.mark.slow
def test_hostile_text_is_judged_at_once():
    chance = random.Random(0)
    slowest = (0.0, "")
    for number in range(400):
        unit = "".join(chance.choices(_PIECES, k=1 + number % 5))
        response = unit * (chance.choice((1, 3, 19_000)) // len(unit) + 1)
        for reference in (ONE, NONE_FITS):
            started = time.thread_time()
            assert tool_calls.score("", response, reference) in (0, 1)
            slowest = max(slowest, (time.thread_time() - started, unit))
    assert slowest[0] < 2, slowest
