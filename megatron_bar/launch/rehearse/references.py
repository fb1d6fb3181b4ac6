"""The score of a verifier's reference, or of a conversation's own reply, as an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_bar.data.bad_items import BadItems
from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.schema import Source
from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.reference import structured
from megatron_bar.verifiers.registry import ANY_ANSWER, Scorers, reference_of, verifier_name


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of the right answers to some items; of an item that tells none, nothing is known."""

    asked: int
    known: int
    earned: int
    by_column: bool | None  # whether references are in a column, not the replies themselves
    first_without: str | None = None  # where the first right answer stands that earned nothing


def score_references(
    source: Source, conversations: Sequence[Conversation], bad: BadItems
) -> ReferenceScores:
    """Let the source's verifier score the right answer to each of `conversations`.

    Raises BarError, with its place, for a reference that is missing or that the verifier can't
    read, where such items aren't to be left out.
    """
    asked = known = earned = 0
    first, scorers = None, Scorers(source)
    for conversation in conversations:
        with bad.caught(conversation.number, conversation.where):
            score = scorers.scorer(conversation)
            answer = right_answer(source, conversation)
            worth = score(ANY_ANSWER if answer is None else answer)
            asked += 1
            if answer is None:
                continue
            known += 1
            earned += worth > 0
            if not worth and first is None:
                first = conversation.where
    return ReferenceScores(asked, known, earned, scorers.by_column, first)


def right_answer(source: Source, conversation: Conversation) -> str | None:
    """The reply that the conversation ends with, else what its reference tells; None if neither."""
    last = conversation.messages[-1]
    if last["role"] == "assistant":
        calls = last.get("function_calls")
        return (last.get("content") or "") + (
            f"<function_calls>{calls}</function_calls>" if calls else "")
    tell = _TOLD.get(verifier_name(source))
    return tell and tell(reference_of(source, conversation))


def _math(reference: Any) -> str:
    """A worked solution as it is; an answer alone in the box that it is looked for in."""
    text = str(reference)
    return text if "\\boxed" in text or "####" in text else f"\\boxed{{{text}}}"


def _code(reference: Any) -> str | None:
    """MBPP and HumanEval bring a solution along with their tests."""
    match structured(reference, "code"):
        case {"canonical_solution": str(rest), "prompt": str(stub)}:
            return f"```python\n{stub}{rest}\n```"
        case {"code": str(code)}:
            return f"```python\n{code}\n```"
    return None


def _safety(reference: Any) -> str:
    return ("I'm sorry, but I can't help with that." if reference == "refuse"
            else "Of course. This is how you can do it.")


def _tool_calls(reference: Any) -> str | None:
    """The first right value of each parameter that has one."""
    match structured(reference, "tool call"):
        case {"calls": [*calls]}:
            pass
        case _:
            return None
    if not calls:
        return "None of these functions fits."
    try:
        return "<function_calls>" + json.dumps([
            {"name": name, "arguments": {key: _first(values) for key, values in allowed.items()
                                         if values != [""]}}
            for call in calls for name, allowed in call.items()
        ]) + "</function_calls>"
    except (AttributeError, TypeError, StopIteration):
        raise BarError("a call of a tool call reference isn't {name: {parameter: [values]}}"
                       ) from None


def _first(values: Sequence[Any]) -> Any:
    value = next(value for value in values if value != "")
    if isinstance(value, dict):
        return {key: _first(options) for key, options in value.items() if options != [""]}
    if isinstance(value, list):
        return [_first([entry]) if isinstance(entry, dict) else entry for entry in value]
    return value


# How a reference reads as an answer, where a verifier's references tell one. An instruction's tell
# what an answer must be like, not what it is.
_TOLD: dict[str, Callable[[Any], str | None]] = {
    "code": _code, "exact": str, "math": _math, "safety": _safety, "tool_calls": _tool_calls,
}
