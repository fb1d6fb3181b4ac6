"""Records of a question and its answer: prompt and completion, Alpaca's instructions."""

from __future__ import annotations

from typing import Any

from megatron_bar.data.chat import Message
from megatron_bar.data.forms.form import Form
from megatron_bar.data.forms.turns import said, turns
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
    _refuse(record, "context")
    question, answer = record[_PROMPT], _first(record, _COMPLETIONS)
    return _turns(question, "user") + ([] if answer is None else _turns(answer, "assistant"))


def _turns(value: Any, role: str) -> list[Message]:
    return turns(value) if isinstance(value, list) else [said(role, value)]


def _fits_alpaca(record: Record, column: str | None) -> bool:
    return _INSTRUCTION in record


def _alpaca_messages(record: Record, column: str | None) -> list[Message]:
    messages = []
    for pair in record.get(_HISTORY) or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BarError("history must be a list of pairs of a question and its answer")
        messages += [said("user", pair[0]), said("assistant", pair[1])]
    question = record[_INSTRUCTION]
    more, answer = _first(record, _INPUTS), _first(record, _OUTPUTS)
    if more:
        if not isinstance(question, str) or not isinstance(more, str):
            raise BarError("instruction and input must be text")
        question = f"{question}\n{more}"
    messages.append(said("user", question))
    return messages + ([] if answer is None else [said("assistant", answer)])


def _first(record: Record, columns: tuple[str, ...]) -> Any:
    given = {column: record[column] for column in columns if record.get(column) is not None}
    if len(given) > 1:
        raise BarError(f"columns {' and '.join(given)} are both given; keep one of them")
    return next(iter(given.values()), None)


def _refuse(record: Record, column: str) -> None:
    if record.get(column):
        raise BarError(f"column {column!r} would be left out; make it part of the prompt")


PROMPT_COMPLETION = Form(
    "prompt_completion", "prompt and completion", _fits_prompt, _prompt_messages)
ALPACA = Form("alpaca", "Alpaca's instruction, input and output", _fits_alpaca, _alpaca_messages)
