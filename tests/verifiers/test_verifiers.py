"""Each verifier on answers of every form it accepts, and on some it must not."""

# ruff: noqa: RUF001 (texts in other scripts)
from __future__ import annotations

import json
import time

import pytest

from megatron_bar.data import toy
from megatron_bar.data.bad_items import BadItems
from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.schema import Source
from megatron_bar.runtime.errors import BarError, MachineError
from megatron_bar.verifiers.call_formats import Call, NotCalls, parse_calls
from megatron_bar.verifiers.language import is_language
from megatron_bar.verifiers.registry import (
    VERIFIERS,
    Scorers,
    code,
    instructions,
    score_answers,
    tool_calls,
)

SQUARE = "def square(n):\n    return n * n\n"
ASSERTS = ["assert square(3) == 9", "assert square(-2) == 4"]


@pytest.mark.parametrize("response", [
    SQUARE, f"Like this:\n```python\n{SQUARE}```\nDone.", f"```\n{SQUARE}",
    f"```python\n1 / 0\n```\nBetter:\n```py\n{SQUARE}```", f"```bash\nls\n```\n{SQUARE}"[15:],
])
def test_code_is_found_in_a_response(response):
    assert code.score("", response, ASSERTS) == 1


def test_code_needs_nearly_all_tests():
    half = "def square(n):\n    return 9"
    assert code.outcomes(half, ASSERTS) == [True, False]
    assert code.score("", half, ASSERTS) == 0
    assert code.score("", half, ASSERTS, threshold=0.5) == 0.5


def test_code_as_a_completion_or_whole():
    stub = 'from typing import List\n\ndef double(n: int) -> int:\n    """Twice n."""\n'
    reference = {"prompt": stub, "entry_point": "double",
                 "test": "def check(candidate):\n    assert candidate(2) == 4\n"}
    assert code.score("", "    return 2 * n", reference) == 1
    assert code.score("", "```python\ndef double(n: List):\n    return n + n\n```", reference) == 1
    assert code.score("", json.dumps({}), json.dumps(reference)) == 0
    assert code.score("", "    return 3 * n", reference) == 0


def test_helpers_of_a_check_come_from_the_prompt():
    stub = ("def shift(n):\n    return n + 1\n\ndef unshift(n):\n    \"\"\"The inverse.\"\"\"\n")
    reference = {"prompt": stub, "entry_point": "unshift",
                 "test": "def check(candidate):\n    assert candidate(shift(5)) == 5\n"}
    assert code.score("", "    return n - 1", reference) == 1
    forged = "def shift(n): return 5\ndef unshift(n): return n"
    assert code.score("", forged, reference) == 0


def test_programs_read_and_write():
    cases = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}]
    assert code.score("", "a, b = map(int, input().split())\nprint(a + b)", cases) == 1
    assert code.score("", "import sys\nprint(sum(map(int, sys.stdin.read().split())), '')",
                      cases) == 1
    assert code.outcomes("input(); print(3)", cases) == [True, False]
    assert code.outcomes("input(); print(3); 1 / 0", cases) == [False, False]


@pytest.mark.parametrize(("tests", "setup", "names"), [
    (["assert f(1) == g(2)"], "", ["f", "g"]),
    (["assert sum(1, 2) == 3"], "", ["sum"]),
    (["assert sorted(f(1)) == [math.pi]"], "", ["f"]),
    (["assert h(root) == 3"], "import os\nroot = Node(1)\nroot.left = Node(os.sep)", ["Node", "h"]),
    (["assert [f(x) for x in range(3)] == list(map(lambda y: y, []))"], "", ["f"]),
])
def test_names_under_test(tests, setup, names):
    assert code.names_under_test(tests, setup) == names


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
    tests = ["assert length(first) == 2", "assert first.next.value == 2",
             "assert same(first) is first", "assert list(count(3)) == [0, 1, 2]",
             "try:\n    fail(1)\nexcept KeyError:\n    pass\nelse:\n    assert False",
             "assert same({(1, 2): {3.5, 1j}, 'x': b'y'}) == {(1, 2): {3.5, 1j}, 'x': b'y'}",
             "assert same(10 ** 100) == 10 ** 100", "assert same(int) is int"]
    assert code.outcomes(source, {"test_list": tests, "test_setup_code": setup}) == [True] * 8


@pytest.mark.parametrize(("text", "calls"), [
    ('Sure. <function_calls>f(a="x", b=-2)\nlib.g()</function_calls>',
     [Call("f", {"a": "x", "b": -2}), Call("lib.g", {})]),
    ('[f(a=[1, (2, 3)], b={"k": true}), g(c=None)]',
     [Call("f", {"a": [1, [2, 3]], "b": {"k": True}}), Call("g", {"c": None})]),
    ('{"name": "f", "arguments": {"a": 1}}', [Call("f", {"a": 1})]),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call><tool_call>{"name": "g", '
     '"arguments": {}}</tool_call>', [Call("f", {"a": 1}), Call("g", {})]),
    ("Just talk (about f).", []), ("<function_calls></function_calls>", []), ("", []),
])
def test_calls_are_read(text, calls):
    assert parse_calls(text) == calls


@pytest.mark.parametrize("text", [
    "f(1)", "f(a=__import__('os').system('true'))", "f(a=1, a=2)", "f(**{'a': 1})", "f(a=g())",
    "f(a=x)", "f", "a = f()", "f(a=1)(b=2)", "{" * 1000, '{"name": "f"}', "import os",
])
def test_what_is_no_call(text):
    with pytest.raises(NotCalls):
        parse_calls(f"<function_calls>{text}</function_calls>")


FUNCTIONS = [{"name": "go", "parameters": {"type": "dict", "required": ["to"], "properties": {
    "to": {"type": "string"}, "fast": {"type": "boolean"}, "miles": {"type": "float"},
    "count": {"type": "integer"}, "stops": {"type": "array", "items": {"type": "string"}}}}}]
GO = {"functions": FUNCTIONS, "calls": [{"go": {
    "to": ["New York", "NYC"], "fast": [True, ""], "miles": [3.0, ""], "count": [1, ""],
    "stops": [["A", "B"], ""]}}]}


@pytest.mark.parametrize(("call", "score"), [
    ("go(to='new york')", 1), ("go(to='N.Y.C.')", 1), ("go(to='Boston')", 0), ("go()", 0),
    ("go(to='NYC', fast=True)", 1), ("go(to='NYC', fast=False)", 0), ("go(to='NYC', fast=1)", 0),
    ("go(to='NYC', miles=3)", 1), ("go(to='NYC', miles='3')", 0), ("go(to='NYC', count=1.0)", 0),
    ("go(to='NYC', count=True)", 0), ("go(to='NYC', stops=['a', 'b'])", 1),
    ("go(to='NYC', stops=['B', 'A'])", 0), ("go(to='NYC', stops=[1])", 0), ("go(to='')", 0),
    ("go(to='NYC', speed=1)", 0), ("went(to='NYC')", 0), ("go(to='NYC')\ngo(to='NYC')", 0),
])
def test_tool_calls(call, score):
    assert tool_calls.score("", f"<function_calls>{call}</function_calls>", GO) == score


def test_parallel_calls_in_any_order_each_for_one():
    wanted = {"functions": FUNCTIONS,
              "calls": [{"go": {"to": ["A", "B"]}}, {"go": {"to": ["A"]}}]}
    assert tool_calls.score("", "[go(to='A'), go(to='B')]", wanted) == 1
    assert tool_calls.score("", "[go(to='B'), go(to='B')]", wanted) == 0


@pytest.mark.parametrize(("name", "settings", "right", "wrong"), [
    ("change_case:capital_word_frequency", {"capital_relation": "at least",
                                            "capital_frequency": 2}, "THIS is BIG", "This is BIG"),
    ("change_case:english_capital", {}, "THIS IS THE END OF IT", "This IS THE END OF IT"),
    ("change_case:english_lowercase", {}, "this is the end of it", "das ist nicht das ende"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Hi.\nP.P.S Bye", "P.S. Bye"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\nP. S. Bye", "PS Bye"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     "SECTION 1\nx\nSECTION 2\ny", "SECTION 1\nSECTION"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n- b\n- c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* **"),
    ("detectable_format:title", {}, "<<Songs>>\nLa", "<< >>\nLa"),
    ("keywords:existence", {"keywords": ["sun", "moon"]}, "Sunday, Moon", "the sun"),
    ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, "Sunday", "the Sun."),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "less than"},
     "one sun", "sun sun"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
     "Quite quick", "quiet"),
    ("language:response_language", {"language": "pt"}, "O livro que não é para você está em casa.",
     "The book that is not for you is at home."),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}, "First.\n\nThen, so.",
     "Then.\n\nFirst."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n***\n***\nb"),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"},
     "Mr. Bean is 3.5 feet. Yes!", "One. Two? Three"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "a b c", "a b"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
    ("startend:end_checker", {"end_phrase": "The end."}, 'And so "the end."', "The end. Or not"),
    ("startend:quotation", {}, ' "yes" ', '"yes" no'),
])
def test_instructions(name, settings, right, wrong):
    reference = {"instruction_id_list": [name], "kwargs": [settings | {"unused": None}]}
    assert instructions.score("", right, reference) == 1
    assert instructions.score("", wrong, json.dumps(reference)) == 0
    assert instructions.score("", " ", reference) == 0
    # One that isn't followed spoils all.
    both = {"instruction_id_list": [name, "startend:end_checker"],
            "kwargs": [settings, {"end_phrase": "never said"}]}
    assert instructions.score("", right, both) == 0


TEXTS = {
    "bg": "Това е книга, която не се чете лесно, но ще я прочета с удоволствие.",
    "de": "Das Buch ist nicht für mich, aber ich lese es mit dir.",
    "en": "The book is not for me, but I will read it with you.",
    "fa": "این کتاب برای من نیست اما آن را با تو می خوانم",
    "hi": "यह किताब मेरे लिए नहीं है लेकिन मैं इसे पढ़ूँगा",
    "kn": "ಈ ಪುಸ್ತಕ ನನಗಲ್ಲ ಆದರೆ ನಾನು ಅದನ್ನು ಓದುತ್ತೇನೆ",
    "ko": "이 책은 나를 위한 것이 아니지만 나는 읽을 것이다",
    "mr": "हे पुस्तक माझ्यासाठी नाही आणि मी ते वाचणार आहे",
    "pa": "ਇਹ ਕਿਤਾਬ ਮੇਰੇ ਲਈ ਨਹੀਂ ਹੈ ਪਰ ਮੈਂ ਇਸਨੂੰ ਪੜ੍ਹਾਂਗਾ",
    "pt": "O livro não é para mim, mas eu leio com você que está na casa.",
    "ru": "Эта книга не для меня, но я её прочитаю вместе с тобой.",
    "sw": "Kitabu hiki si cha kwangu lakini ni kizuri na mimi nitakisoma katika nyumba ya rafiki.",
    "vi": "Cuốn sách này không dành cho tôi nhưng tôi sẽ đọc nó với bạn.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_languages_are_told_apart(language):
    assert [other for other in TEXTS if is_language(TEXTS[language], other)] == [language]


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
    return score_answers(items, answers, [BadItems(skip)] * len(items))


def test_items_are_scored_by_their_source():
    exact, maths = Source(path="sums.jsonl"), Source(path="sums.jsonl", verifier="math")
    items = [(exact, conversation()), (exact, conversation()), (maths, conversation(answer="4/2")),
             (exact, conversation(answer="two"))]
    assert scores_of(items, ["2 ", "#### 2", "It is 2.", "two"]) == [1, 0, 1, 1]


def test_wrong_sources_and_references_are_named_with_their_place():
    with pytest.raises(BarError, match=r"verifier 'maths' is unknown; there are code, exact"):
        scores_of([(Source(path="x", verifier="maths"), conversation())], [""])
    for verifier, reference, message in (
        ("code", 3, "a code reference is"), ("code", "f(x", "must be JSON"),
        ("code", ["assert f("], "isn't Python"), ("tool_calls", {}, "functions and calls"),
        ("instructions", {"instruction_id_list": ["x"], "kwargs": [{}]}, "'x' is unknown"),
        ("safety", "no", "refuse or comply"),
    ):
        source = Source(path="x", verifier=verifier)
        with pytest.raises(BarError, match=rf"^sums\.jsonl:1: .*{message}"):
            scores_of([(source, conversation(answer=reference))], ["x"])
    open_ended = Conversation([{"role": "user", "content": "Hi"}], "x", {}, "x.jsonl:2")
    with pytest.raises(BarError, match=r"x\.jsonl:2: .*set reference_column"):
        scores_of([(Source(path="x.jsonl"), open_ended)], [""])


def test_a_verifier_that_fails_names_the_item(monkeypatch):
    def fails(prompt, response, reference):
        if response == "disk":
            raise OSError("no space left")
        return {}[response] + 1

    monkeypatch.setitem(VERIFIERS, "mine", fails)
    items = [(Source(path="x", verifier="mine"), conversation()),
             (Source(path="x"), conversation())]
    message = (r"^sums\.jsonl:1: verifier mine can't score an answer to this item of source sums: "
               "KeyError: '2'$")
    with pytest.raises(BarError, match=message):
        scores_of(items, ["2", "2"])
    assert scores_of(items, ["2", "2"], skip=True) == [None, 1]
    with pytest.raises(MachineError, match=r"^verifier mine .*OSError: no space left"):
        scores_of(items, ["disk", "2"], skip=True)


def test_a_reference_column_that_is_named_must_be_there():
    named = Source(path="sums.jsonl", reference_column="anwser")
    for columns in ({"answer": "2"}, {"anwser": None}):
        with pytest.raises(BarError, match=r"^sums\.jsonl:1: column 'anwser', the source's "
                                           r"reference_column, .*there are messages, an"):
            scores_of([(named, conversation(**columns))], ["2"])
    assert scores_of([(named, conversation(anwser="3"))], ["3"]) == [1]


@pytest.mark.parametrize("first, second, message", [
    ({"answer": "2"}, {}, "isn't here, and is in the first item of source sums"),
    ({}, {"answer": "2"}, "is here, and isn't in the first item"),
])
def test_references_of_a_source_are_all_in_the_column_or_all_replies(first, second, message):
    scorers = Scorers(Source(path="sums.jsonl"))
    for _ in range(2):
        assert scorers.scorer(conversation(**first))("2") == 1
    with pytest.raises(BarError, match=rf"^sums\.jsonl:1: column 'answer' {message}"):
        scorers.scorer(conversation(**second))


_IFEVAL = {"instruction_id_list": list(instructions._CHECKS), "kwargs": [
    {"capital_relation": "at least", "capital_frequency": 1}, {}, {}, {"prompt_to_repeat": "x"}, {},
    {"num_placeholders": 1}, {"postscript_marker": "P.P.S"}, {}, {},
    {"section_spliter": "SECTION", "num_sections": 1}, {"num_bullets": 1}, {"num_highlights": 1},
    {}, {"keywords": ["x"]}, {"forbidden_words": ["x"]},
    {"keyword": "x", "frequency": 1, "relation": "at least"},
    {"letter": "x", "let_frequency": 1, "let_relation": "at least"}, {"language": "en"},
    {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "x"}, {"num_paragraphs": 1},
    {"num_sentences": 1, "relation": "at least"}, {"num_words": 1, "relation": "at least"}, {},
    {"end_phrase": "x"}, {}]}
_REFERENCES = {"math": "\\frac{1}{2}", "tool_calls": GO, "instructions": _IFEVAL,
               "safety": "refuse", "exact": "y", "toy/code": "def a(b):\n    return b + 1"}
_ENDLESS = (" ", "\n", "\n ", "[", "<", "<<", ".", "*", "* ", "a", "1", "$", "$ ", "\\boxed{", "{",
            "(", "-", "not ", "a.", "f(", "a,", "```\n", "<function_calls>", "### ", "I can't ",
            "final answer is ", "3.", "_ ", "\"", "1,", "/ ")


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
