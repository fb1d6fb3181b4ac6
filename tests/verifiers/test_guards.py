"""What comes out of a verifier is a number from 0 to 1, in time, whatever goes in."""

from __future__ import annotations

import random
import time

import pytest

from megatron_bar.data.bad_items import BadItems
from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import MachineError, VerifierFailed
from megatron_bar.verifiers.failures import Failures
from megatron_bar.verifiers.registry import VERIFIERS, score_answers, scorer
from megatron_bar.verifiers.scores import as_score

_INSTRUCTIONS = {
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "startend:quotation": {},
    "detectable_format:number_bullet_lists": {"num_bullets": 1},
    "punctuation:no_comma": {},
    "detectable_format:multiple_sections": {"section_spliter": "SECTION", "num_sections": 1},
    "keywords:frequency": {"keyword": "a", "frequency": 1, "relation": "at least"},
    "language:response_language": {"language": "en"},
    "combination:two_responses": {},
    "length_constraints:number_sentences": {"num_sentences": 1, "relation": "at least"},
    "change_case:english_capital": {},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
}
_FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "array"}}}}
_REFERENCE = {
    "code": ["assert square(3) == 9"],
    "exact": "y",
    "math": "\\frac{1}{2}",
    "safety": "refuse",
    "instructions": {
        "instruction_id_list": list(_INSTRUCTIONS),
        "kwargs": list(_INSTRUCTIONS.values()),
    },
    "tool_calls": {"functions": [_FUNCTION], "calls": [{"f": {"a": [[1]]}}]},
    "toy/general": "yes",
    "toy/math": "12",
    "toy/code": "def a(b):\n    return b + 1",
    "toy/tool_use": "add(1, 2)",
    "toy/safety": "refuse",
}
# What patterns, parsers, numbers and encodings choke on.
_PIECES = (
    "\0",
    "\ud83d",
    "\u202e",
    "\N{COMBINING ACUTE ACCENT}",
    "\x1b[31m",
    "\r\n",
    "nan",
    "inf",
    "-1e999",
    "1/0",
    "9" * 5000,
    "0x",
    "\\boxed{",
    "\\frac{1}{0}",
    "$$",
    "####",
    "}",
    "```python\n",
    "```",
    "~~~",
    "<function_calls>",
    "</function_calls>",
    "[PYTHON]",
    "f(a=",
    '{"name": "f", "arguments": {',
    "[" * 3000,
    "(" * 3000,
    "\\" * 999,
    "* ",
    "<<",
    ">>",
    "P.S.",
    "I can't ",
    "final answer is ",
    "lambda: ",
    "\t",
    "é",
    "你好",
    " ",
    "a" * 2000,
    "...",
    "\u2028",
)


def conversation(answer: object = "2", **columns: object) -> Conversation:
    messages = [{"role": "user", "content": "1 + 1?"}]
    return Conversation(messages, "sums", {"answer": answer} | columns, "sums.jsonl:1")


def hostile(seed: str, count: int) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(
            rng.choice(_PIECES) * rng.choice((1, 1, 2, 30)) for _ in range(rng.randrange(1, 12))
        )
        for _ in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.timeout(120)
def test_hostile_text_gets_a_number_and_never_an_error(verifier):
    # Code and formulas take a process each.
    texts = hostile(verifier, {"code": 2, "math": 12}.get(verifier, 60))
    item = (Source(path="x", verifier=verifier), conversation(_REFERENCE[verifier]))
    failures, started = Failures(), time.monotonic()
    scores = score_answers([item] * len(texts), texts, [BadItems(False)] * len(texts), failures)
    assert all(score in (0, 1) for score in scores)
    assert failures.count == 0
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("value", [0, 1, True, 0.5, 1.0, -0.0])
def test_a_score_is_a_number(value):
    assert type(as_score(value)) is float and as_score(value) == value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -0.1,
        1.0001,
        10**400,
        "1",
        b"1",
        None,
        [1],
        {},
        1j,
        print,
    ],
)
def test_what_is_no_score(value):
    with pytest.raises(VerifierFailed, match=r"^it returned .* \(\w+\), and a score is a number"):
        as_score(value)


class _Odd:
    def __float__(self) -> float:
        raise KeyError("no number")

    __repr__ = None


def test_an_object_that_cannot_be_shown_is_no_score():
    with pytest.raises(VerifierFailed, match=r"^it returned something \(_Odd\)"):
        as_score(_Odd())


def test_answers_that_a_verifier_fails_on_are_told_counted_and_earn_nothing(monkeypatch, capsys):
    def fails(prompt: str, response: str, reference: str) -> float:
        return {"good": 1.0, "large": 7.0}[response]

    monkeypatch.setitem(VERIFIERS, "mine", fails)
    item = (Source(path="x", verifier="mine"), conversation())
    failures = Failures()
    answers = ["good", "bad", "large", "good", *["bad"] * 9]
    scores = score_answers([item] * 13, answers, [BadItems(False)] * 13, failures)
    assert scores == [1, 0, 0, 1, *[0] * 9] and failures.count == 11
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 6 and "only counted, as verifier_failures" in told[-1]
    place = "megatron-bar: sums.jsonl:1: verifier mine can't score an answer to this item of source"
    assert (
        sum(line == f"{place} sums: KeyError: 'bad'; this answer earns nothing" for line in told)
        >= 3
    )
    assert f"{place} sums: it returned 7.0 (float), and a score is a number from 0 to 1; " in (
        " ".join(told)
    )


@pytest.mark.parametrize(
    "error, kind",
    [
        (MemoryError(), VerifierFailed),
        (RecursionError("deep"), VerifierFailed),
        (OSError("no space left"), MachineError),  # which is no answer's doing
    ],
)
def test_a_failure_is_the_answers_or_the_machines(error, kind, monkeypatch):
    def fails(prompt: str, response: str, reference: str) -> float:
        raise error

    monkeypatch.setitem(VERIFIERS, "mine", fails)
    with pytest.raises(kind, match="verifier mine can't score an answer to this item of source"):
        scorer(Source(path="x", verifier="mine"), conversation())("x")
