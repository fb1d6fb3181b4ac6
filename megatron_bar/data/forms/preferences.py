"""Preference pairs: a prompt, the answer that was chosen, and one that was rejected.

`chosen` and `rejected` are whole conversations (lists of messages), or answers to `prompt`: text,
or messages after it. Both end with a reply to the same messages.
"""

from __future__ import annotations

from typing import Any

from megatron_bar.data import forms
from megatron_bar.data.forms import lists
from megatron_bar.data.forms.turns import said
from megatron_bar.data.message_keys import LOSS
from megatron_bar.data.messages import Message
from megatron_bar.data.records import Record
from megatron_bar.runtime.errors import BarError

WHAT = "preference pairs (prompt, chosen, rejected)"  # what reports call the form
_PROMPT, _CHOSEN, _REJECTED = "prompt", "chosen", "rejected"
_MESSAGES = "messages"


def read_pair(record: Record) -> tuple[list[Message], list[Message]]:
    """The chosen and the rejected conversation, of which the last reply alone carries loss.

    Raises BarError for what isn't a pair of answers to one prompt.
    """
    if not isinstance(record, dict):
        raise BarError(f"a record is {type(record).__name__}, not an object with columns")
    for column in (_CHOSEN, _REJECTED):
        if record.get(column) is None:
            raise BarError(
                f"column {column!r} is missing; there are {', '.join(map(str, record))},"
                " and dpo reads prompt, chosen and rejected"
            )
    chosen, rejected = (_conversation(record, column) for column in (_CHOSEN, _REJECTED))
    if chosen[:-1] != rejected[:-1]:
        raise BarError("chosen and rejected answer different prompts; a pair has one")
    if chosen == rejected:
        raise BarError("chosen and rejected are the same, so that there is nothing to prefer")
    return chosen, rejected


def _conversation(record: Record, column: str) -> list[Message]:
    answer, prompt = record[column], record.get(_PROMPT)
    turns = answer if isinstance(answer, list) else [said("assistant", answer)]
    if _begins_with_reply(turns):
        if not prompt:
            raise BarError(f"{column} is an answer alone, and column {_PROMPT!r} is missing")
        turns = [*(prompt if isinstance(prompt, list) else [said("user", prompt)]), *turns]
    # Other columns, such as system and tools, belong to both.
    others = {
        name: value for name, value in record.items() if name not in (_PROMPT, _CHOSEN, _REJECTED)
    }
    messages = forms.read(lists.MESSAGES, others | {_MESSAGES: turns}, _MESSAGES)
    if messages[-1]["role"] != "assistant":
        raise BarError(f"{column} ends with a {messages[-1]['role']} turn, not a reply")
    return [
        message | {LOSS: False} if message["role"] == "assistant" else message
        for message in messages[:-1]
    ] + messages[-1:]


def _begins_with_reply(turns: list[Any]) -> bool:
    first = turns[0] if turns else None
    return isinstance(first, dict) and first.get("role") == "assistant"
