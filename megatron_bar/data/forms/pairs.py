"""Records of a question and its answer: prompt and completion, Alpaca's instructions."""

from __future__ import annotations

from typing import Any

from megatron_bar.data.forms.form import Form
from megatron_bar.data.forms.turns import said, turns
from megatron_bar.data.messages import Message, check_text
from megatron_bar.data.records import Record
from megatron_bar.runtime.errors import BarError

_PROMPT, _INSTRUCTION, _HISTORY = "prompt", "instruction", "history"
_COMPLETIONS = ("completion", "response")
_INPUTS = ("input", "context")
_OUTPUTS = ("output", "response")


def _fits_prompt(record: Record, column: str | None) -> bool:
    return _PROMPT in record


def _prompt_messages(record: Record, column: str | None) -> list[Message]:
    """Without a completion it is a prompt alone, as RLVR reads it."""
    for column in _INPUTS:
        if record.get(column):
            raise BarError(f"column {column!r} would be left out; make it part of the prompt")
    history, question = _history(record), record[_PROMPT]
    if history and isinstance(question, list):
        raise BarError("history is given beside a prompt that is a list of messages; keep one")
    answer = _first(record, _COMPLETIONS)
    return [
        *history,
        *_turns(question, "user"),
        *([] if answer is None else _turns(answer, "assistant")),
    ]


def _turns(value: Any, role: str) -> list[Message]:
    return turns(value) if isinstance(value, list) else [said(role, value)]


def _fits_alpaca(record: Record, column: str | None) -> bool:
    return _INSTRUCTION in record


def _alpaca_messages(record: Record, column: str | None) -> list[Message]:
    question = record[_INSTRUCTION]
    more, answer = _first(record, _INPUTS), _first(record, _OUTPUTS)
    if more:
        check_text(question, "instruction")
        check_text(more, "input")
        question = f"{question}\n{more}"
    return [
        *_history(record),
        said("user", question),
        *([] if answer is None else [said("assistant", answer)]),
    ]


def _history(record: Record) -> list[Message]:
    """The turns before the question."""
    history = record.get(_HISTORY) or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise BarError("history must be a list of pairs of a question and its answer")
    return [
        said(role, words) for pair in history for role, words in zip(("user", "assistant"), pair)
    ]


def _first(record: Record, columns: tuple[str, ...]) -> Any:
    given = {column: record[column] for column in columns if record.get(column) is not None}
    if len(given) > 1:
        raise BarError(f"columns {' and '.join(given)} are both given; keep one of them")
    return next(iter(given.values()), None)


PROMPT_COMPLETION = Form(
    "prompt_completion", "prompt and completion", _fits_prompt, _prompt_messages
)
ALPACA = Form("alpaca", "Alpaca's instruction, input and output", _fits_alpaca, _alpaca_messages)
