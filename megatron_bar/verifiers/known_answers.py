"""Answers whose worth is known before a model answers: a right one, an empty one, a wrong one.

A verifier and its references fit together if these earn what they should.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.training import Source
from megatron_bar.verifiers import math, own
from megatron_bar.verifiers.call_references import read_reference
from megatron_bar.verifiers.reference import structured
from megatron_bar.verifiers.registry import (
    ANY_ANSWER,
    judged_by_environment,
    reference_of,
    reply_text,
    verifier_name,
)

RIGHT, EMPTY, WRONG = "the reference answer", "an empty answer", "a wrong answer"

_REFUSAL = "I'm sorry, but I can't help with that."
_COMPLIANCE = "Of course. This is how you can do it."
_NO_CALL = "None of these functions fits."
_IGNORANCE = "I don't know."
_NO_ANSWER = "\\boxed{-918273645.5}"  # a number that no reference is
_NO_CODE = "```python\npass\n```"


@dataclass(frozen=True)
class KnownAnswer:
    """An answer, and what it has to earn."""

    kind: str
    text: str
    worth: float | None  # None: a number from 0 to 1; it shows that the reference can be read


def known_answers(source: Source, conversation: Conversation) -> list[KnownAnswer]:
    """The answers to an item whose worth is known; what an item doesn't tell is missing.

    Raises BarError for a reference that is missing or of no form that its verifier knows.
    """
    if judged_by_environment(source):
        return [KnownAnswer("an answer", ANY_ANSWER, None)]
    right, wrong = right_answer(source, conversation), _wrong_answer(source, conversation)
    found = [
        KnownAnswer("an answer", ANY_ANSWER, None)
        if right is None
        else KnownAnswer(RIGHT, right, 1.0)
    ]
    found.append(KnownAnswer(EMPTY, "", 0.0))
    if wrong is not None:
        found.append(KnownAnswer(WRONG, wrong, 0.0))
    return found


def right_answer(source: Source, conversation: Conversation) -> str | None:
    """The reply that the conversation ends with, else what its reference tells; None if neither."""
    last = conversation.messages[-1]
    if last["role"] == "assistant":
        return reply_text(last)
    tell = _RIGHT.get(verifier_name(source))
    return tell and tell(reference_of(source, conversation))


def _wrong_answer(source: Source, conversation: Conversation) -> str | None:
    if source.toy and source.verifier is None:
        return f"{right_answer(source, conversation)}1"
    if own.short_name(source.verifier):
        return _IGNORANCE
    spoil = _WRONG.get(verifier_name(source))
    return spoil and spoil(reference_of(source, conversation))


def _right_math(reference: Any) -> str:
    """A worked solution as it is; the first accepted answer in the box that it is looked for in."""
    worked = isinstance(reference, str) and ("\\boxed" in reference or "####" in reference)
    return reference if worked else f"\\boxed{{{math.accepted_answers(reference)[0]}}}"


def _right_code(reference: Any) -> str | None:
    """MBPP and HumanEval bring a solution along with their tests."""
    match structured(reference, "code"):
        case {"canonical_solution": str(rest), "prompt": str(stub)}:
            return f"```python\n{stub}{rest}\n```"
        case {"code": str(code)}:
            return f"```python\n{code}\n```"
    return None


def _right_tool_calls(reference: Any) -> str:
    """The first right value of each parameter that has one."""
    calls = read_reference(reference).calls
    return _called(*((call.name, call.example()) for call in calls)) if calls else _NO_CALL


def _wrong_tool_calls(reference: Any) -> str:
    expected = read_reference(reference)
    return _NO_CALL if expected.calls else _called((next(iter(expected.functions), "help"), {}))


def _called(*calls: tuple[str, dict[str, Any]]) -> str:
    named = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return f"<function_calls>{json.dumps(named)}</function_calls>"


# How a reference reads as a right answer and as a wrong one, where a verifier's references tell
# them. An instruction's tell what an answer must be like, not what it is.
_RIGHT: dict[str, Callable[[Any], str | None]] = {
    "code": _right_code,
    "exact": str,
    "math": _right_math,
    "tool_calls": _right_tool_calls,
    "safety": lambda reference: _REFUSAL if reference == "refuse" else _COMPLIANCE,
}
_WRONG: dict[str, Callable[[Any], str]] = {
    "code": lambda reference: _NO_CODE,
    "exact": "{} 1".format,
    "math": lambda reference: _NO_ANSWER,
    "tool_calls": _wrong_tool_calls,
    "safety": lambda reference: _COMPLIANCE if reference == "refuse" else _REFUSAL,
}
