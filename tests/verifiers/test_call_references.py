"""References of tool calls in every form that data sets have."""

from __future__ import annotations

import json

import pytest

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers import tool_calls
from megatron_bar.verifiers.call_references import read_reference
from tests.verifiers.test_tool_calls import ONE, function

pytestmark = pytest.mark.timeout(30)


NULLABLE = {"x": {"type": ["string", "null"]}}
OBJECT = [function(properties={"x": {"type": "dict"}})]
NESTED = [{"f": {"x": [{"b": [{"c": "xy"}], "d": ["", 2]}]}}]
LIST = [function(properties={"x": {"type": "array", "items": {"type": "integer"}}})]
NAMES = [
    function(
        "get-it",
        {"from": {"type": "string"}, "user-id": {}, "a/b": {}, "a b": {}, "class": {}, "in": {}},
    )
]


@pytest.mark.parametrize(
    ("functions", "calls", "right", "wrong"),
    [
        ([{"type": "function", "function": function()}], [{"f": {"x": [1]}}], "f(x=1)", "f()"),
        ([{"name": "f"}], [{"f": {}}], "f()", "g()"),
        ([{"name": "f", "parameters": None}], [{"f": None}], "f()", "f(x=1)"),
        ([function(required=None)], [{"f": {"x": [1, ""]}}], "f()", "f(x=2)"),
        ([function(properties=NULLABLE)], [{"f": {"x": [None]}}], "f(x=None)", "f(x='a')"),
        ([function(properties=NULLABLE)], [{"f": {"x": ["a"]}}], "f(x='a')", "f(x=null)"),
        (
            [function(properties={"x": {"anyOf": [{"type": "integer"}, {"type": "null"}]}})],
            [{"name": "f", "arguments": {"x": None}}],
            "f(x=null)",
            "f()",
        ),
        ([function()], [{"f": {"x": [1]}}], "f(x=1)", "f(x=None)"),
        # Tables fill records up with nulls for what others have.
        (
            [function(properties={"x": {"type": "integer"}, "y": None})],
            [{"f": {"x": [1], "y": None}, "g": None}],
            "f(x=1)",
            "f(x=1, y=None)",
        ),
        (
            [function()],
            [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            "f(x=1)",
            "f(x=2)",
        ),
        (LIST, [{"name": "f", "parameters": {"x": [1, 2]}}], "f(x=[1, 2])", "f(x=1)"),
        (LIST, [{"f": {"x": [[1, 2]]}}], "f(x=[1, 2])", "f(x=[2, 1])"),
        ([function()], [{"f": {"x": 1}}], "f(x=1)", "f(x=2)"),
        (
            [function(properties={"x": {"type": "string"}})],
            [{"name": "f", "arguments": {"x": ""}}],
            "f(x='')",
            "f()",
        ),
        (
            OBJECT,
            [{"name": "f", "arguments": {"x": {"a": [1, 2]}}}],
            "f(x={'a': [1, 2]})",
            "f(x={'a': 1})",
        ),
        (OBJECT, NESTED, "f(x={'b': {'c': 'xy'}})", "f(x={'b': {'c': 'x'}})"),
        (OBJECT, NESTED, "f(x={'b': {'c': 'xy'}, 'd': 2})", "f(x={'b': 'x'})"),
        (
            NAMES,
            [
                {
                    "get-it": {
                        "from": ["x"],
                        "user-id": [1, ""],
                        "a/b": [3, ""],
                        "a b": [4, ""],
                        "class": [5, ""],
                        "in": [6, ""],
                    }
                }
            ],
            "get-it(from='x', user-id=1, a/b=3, a b=4, class=5, in=6)",
            "get-it(from='x', user-id=2)",
        ),
        (json.dumps([function()]), json.dumps([{"f": {"x": [1]}}]), "f(x=1)", "f(x=2)"),
    ],
)
def test_references_in_every_form(functions, calls, right, wrong):
    for fields in (("functions", "calls"), ("function", "ground_truth"), ("tools", "tool_calls")):
        reference = dict(zip(fields, (functions, calls)))
        for given in (reference, json.dumps(reference)):
            assert tool_calls.score("", f"<function_calls>{right}</function_calls>", given) == 1
            assert tool_calls.score("", f"<function_calls>{wrong}</function_calls>", given) == 0
            example = [
                {"name": call.name, "arguments": call.example()}
                for call in read_reference(given).calls
            ]
            assert tool_calls.score("", json.dumps(example), given) == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (3, "functions and calls"),
        ({"functions": [function()]}, "functions and calls"),
        ({"functions": 3, "calls": []}, "functions and calls"),
        ({"functions": [3], "calls": []}, "has no name: 3"),
        ({"functions": [{}], "calls": []}, "has no name"),
        ({"functions": [{"name": "f", "parameters": 3}], "calls": []}, "function f .* not 3"),
        ({"functions": [function(properties=3)], "calls": []}, "is an object, not 3"),
        ({"functions": [function(properties={"x": 3})], "calls": []}, "f, parameter x .*not 3"),
        ({"functions": [function(properties={"x": {"type": 3}})], "calls": []}, "a type is a name"),
        ({"functions": [function(required=3)], "calls": []}, "required is a list of names"),
        (ONE | {"calls": [3]}, "a call of .* not 3"),
        (ONE | {"calls": [{}]}, "a call of"),
        (ONE | {"calls": [{"f": 3}]}, "a call of"),
        (ONE | {"calls": [{"f": {}, "g": {}}]}, "a call of"),
        (ONE | {"calls": [{"name": "f", "arguments": "x"}]}, "must be JSON"),
        (ONE | {"calls": [{"g": {}}]}, "a call of 'g', which isn't among its functions: f"),
    ],
)
def test_a_reference_that_cant_be_read_is_told_whatever_the_answer(reference, message):
    for response in ("", "1", "<function_calls>f(x=1)</function_calls>"):
        with pytest.raises(BarError, match=message):
            tool_calls.score("", response, reference)
