"""Each verifier on answers of every form it accepts, and on some it must not."""

from __future__ import annotations

import json
import time

import pytest

from megatron_bar.data import toy
from megatron_bar.data.bad_items import BadItems
from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers import code_tests
from megatron_bar.verifiers.failures import Failures
from megatron_bar.verifiers.registry import (
    VERIFIERS,
    Scorers,
    code,
    score_answers,
)
from tests.verifiers.test_instructions import EVERY_INSTRUCTION
from tests.verifiers.test_tool_calls import GO

SQUARE = "def square(n):\n    return n * n\n"
ASSERTS = ["assert square(3) == 9", "assert square(-2) == 4"]


@pytest.mark.parametrize(
    "response",
    [
        SQUARE,
        f"Like this:\n```python\n{SQUARE}```\nDone.",
        f"```\n{SQUARE}",
        f"```python\n1 / 0\n```\nBetter:\n```py\n{SQUARE}```",
        f"```bash\nls\n```\n{SQUARE}"[15:],
    ],
)
def test_code_is_found_in_a_response(response):
    assert code.score("", response, ASSERTS) == 1


def test_code_needs_nearly_all_tests():
    half = "def square(n):\n    return 9"
    assert code.outcomes(half, ASSERTS) == [True, False]
    assert code.score("", half, ASSERTS) == 0
    assert code.score("", half, ASSERTS, threshold=0.5) == 0.5


def test_code_as_a_completion_or_whole():
    stub = 'from typing import List\n\ndef double(n: int) -> int:\n    """Twice n."""\n'
    reference = {
        "prompt": stub,
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    assert code.score("", "    return 2 * n", reference) == 1
    assert code.score("", "```python\ndef double(n: List):\n    return n + n\n```", reference) == 1
    assert code.score("", json.dumps({}), json.dumps(reference)) == 0
    assert code.score("", "    return 3 * n", reference) == 0


def test_helpers_of_a_check_come_from_the_prompt():
    stub = 'def shift(n):\n    return n + 1\n\ndef unshift(n):\n    """The inverse."""\n'
    reference = {
        "prompt": stub,
        "entry_point": "unshift",
        "test": "def check(candidate):\n    assert candidate(shift(5)) == 5\n",
    }
    assert code.score("", "    return n - 1", reference) == 1
    forged = "def shift(n): return 5\ndef unshift(n): return n"
    assert code.score("", forged, reference) == 0


def test_programs_read_and_write():
    cases = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}]
    assert code.score("", "a, b = map(int, input().split())\nprint(a + b)", cases) == 1
    assert (
        code.score("", "import sys\nprint(sum(map(int, sys.stdin.read().split())), '')", cases) == 1
    )
    assert code.outcomes("input(); print(3)", cases) == [True, False]
    assert code.outcomes("input(); print(3); 1 / 0", cases) == [False, False]


@pytest.mark.parametrize(
    ("tests", "setup", "names"),
    [
        (["assert f(1) == g(2)"], "", ["f", "g"]),
        (["assert sum(1, 2) == 3"], "", ["sum"]),
        (["assert sorted(f(1)) == [math.pi]"], "", ["f"]),
        (
            ["assert h(root) == 3"],
            "import os\nroot = Node(1)\nroot.left = Node(os.sep)",
            ["Node", "h"],
        ),
        (["assert [f(x) for x in range(3)] == list(map(lambda y: y, []))"], "", ["f"]),
    ],
)
def test_names_under_test(tests, setup, names):
    assert code_tests.names_under_test(tests, setup) == names


def test_objects_of_the_tested_code():
    source = """
class Node:
    def __init__(self, value): self.value, self.next = value, None
def length(node): return 0 if node is None else 1 + length(node.next)
def same(node): return node
def count(n): yield from range(n)
def fail(n): raise KeyError(n)
"""
    setup = "first = Node(1)\nfirst.next = Node(2)"
    tests = [
        "assert length(first) == 2",
        "assert first.next.value == 2",
        "assert same(first) is first",
        "assert list(count(3)) == [0, 1, 2]",
        "try:\n    fail(1)\nexcept KeyError:\n    pass\nelse:\n    assert False",
        "assert same({(1, 2): {3.5, 1j}, 'x': b'y'}) == {(1, 2): {3.5, 1j}, 'x': b'y'}",
        "assert same(10 ** 100) == 10 ** 100",
        "assert same(int) is int",
    ]
    assert code.outcomes(source, {"test_list": tests, "test_setup_code": setup}) == [True] * 8


@pytest.mark.parametrize("domain", toy.ALL_DOMAINS)
def test_toy_answers_score_one(domain):
    for item in toy.conversations(domain, "heldout", 5, 0):
        reply = item["messages"][-1]
        calls = reply.get("function_calls")
        response = reply["content"] + (f"<function_calls>{calls}</function_calls>" if calls else "")
        assert VERIFIERS[f"toy/{domain}"]("", response, item["answer"]) == 1
        assert VERIFIERS[f"toy/{domain}"]("", response + "1", item["answer"]) == 0


def conversation(**columns):
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    return Conversation(messages, "sums", {"messages": messages} | columns, "sums.jsonl:1")


def scores_of(items, answers, skip=False):
    return score_answers(items, answers, [BadItems(skip)] * len(items), Failures())


def test_items_are_scored_by_their_source():
    exact, maths = Source(path="sums.jsonl"), Source(path="sums.jsonl", verifier="math")
    items = [
        (exact, conversation()),
        (exact, conversation()),
        (maths, conversation(answer="4/2")),
        (exact, conversation(answer="two")),
    ]
    assert scores_of(items, ["2 ", "#### 2", "It is 2.", "two"]) == [1, 0, 1, 1]


def test_wrong_sources_and_references_are_named_with_their_place():
    with pytest.raises(BarError, match=r"verifier 'maths' is unknown; there are code, exact"):
        scores_of([(Source(path="x", verifier="maths"), conversation())], [""])
    for verifier, reference, message in (
        ("code", 3, "a code reference is"),
        ("code", "f(x", "must be JSON"),
        ("code", ["assert f("], "isn't Python"),
        ("tool_calls", {}, "functions and calls"),
        ("instructions", {"instruction_id_list": ["x"], "kwargs": [{}]}, "'x' is unknown"),
        ("safety", "no", "refuse or comply"),
    ):
        source = Source(path="x", verifier=verifier)
        with pytest.raises(BarError, match=rf"^sums\.jsonl:1: .*{message}"):
            scores_of([(source, conversation(answer=reference))], ["x"])
    open_ended = Conversation([{"role": "user", "content": "Hi"}], "x", {}, "x.jsonl:2")
    with pytest.raises(BarError, match=r"x\.jsonl:2: .*set reference_column"):
        scores_of([(Source(path="x.jsonl"), open_ended)], [""])


def test_a_reference_column_that_is_named_must_be_there():
    for column, other in (("anwser", "answer"), ("answer", "anwser")):  # the usual one, too
        named = Source(path="sums.jsonl", reference_column=column)
        for columns in ({other: "2"}, {column: None}):
            with pytest.raises(
                BarError,
                match=rf"^sums\.jsonl:1: column '{column}', the source's "
                r"reference_column, .*there are messages, an",
            ):
                scores_of([(named, conversation(**columns))], ["2"])
        assert scores_of([(named, conversation(**{column: "3"}))], ["3"]) == [1]


@pytest.mark.parametrize(
    "first, second, message",
    [
        ({"answer": "2"}, {}, "isn't here, and is in the first item of source sums"),
        ({}, {"answer": "2"}, "is here, and isn't in the first item"),
    ],
)
def test_references_of_a_source_are_all_in_the_column_or_all_replies(first, second, message):
    scorers = Scorers(Source(path="sums.jsonl"))
    for _ in range(2):
        assert scorers.scorer(conversation(**first))("2") == 1
    with pytest.raises(BarError, match=rf"^sums\.jsonl:1: column 'answer' {message}"):
        scorers.scorer(conversation(**second))


_REFERENCES = {
    "math": "\\frac{1}{2}",
    "tool_calls": GO,
    "instructions": EVERY_INSTRUCTION,
    "safety": "refuse",
    "exact": "y",
    "toy/code": "def a(b):\n    return b + 1",
}
_ENDLESS = (
    " ",
    "\n",
    "\n ",
    "[",
    "<",
    "<<",
    ".",
    "*",
    "* ",
    "a",
    "1",
    "$",
    "$ ",
    "\\boxed{",
    "{",
    "(",
    "-",
    "not ",
    "a.",
    "f(",
    "a,",
    "```\n",
    "<function_calls>",
    "### ",
    "I can't ",
    "final answer is ",
    "3.",
    "_ ",
    '"',
    "1,",
    "/ ",
)


@pytest.mark.slow
@pytest.mark.parametrize("verifier", _REFERENCES)
def test_no_text_takes_long_or_crashes(verifier):
    """Text that patterns and parsers choke on: one thing over and over, then something else."""
    VERIFIERS[verifier]("", "\\boxed{x}", _REFERENCES[verifier])  # so that workers have started
    for thing in _ENDLESS:
        for length in (9_000, 19_000, 1_000_000):
            response = thing * (length // len(thing)) + "x"
            started = time.monotonic()
            assert VERIFIERS[verifier]("", response, _REFERENCES[verifier]) == 0
            assert time.monotonic() - started < 10, (thing, length)
