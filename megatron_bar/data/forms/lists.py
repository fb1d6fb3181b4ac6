"""Lists of messages: OpenAI's and the project's own (`role`, `content`), ShareGPT's (`from`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_bar.data.forms.form import Form
from megatron_bar.data.forms.turns import turns
from megatron_bar.data.json_text import NotJson, parse_json
from megatron_bar.data.message_keys import CONTENT, FUNCTION_CALLS
from megatron_bar.data.messages import Message
from megatron_bar.data.records import Record
from megatron_bar.runtime.errors import BarError

_COLUMNS = ("messages", "conversations", "conversation")
_ROLE, _FROM, _VALUE = "role", "from", "value"
_CALL_ROLE = "function_call"  # of a ShareGPT turn that is nothing but a call


def column_of(record: Record, column: str | None) -> str | None:
    """The column that holds messages, `column` or the first usual one; None if there is none."""
    candidates = _COLUMNS if column is None else (column,)
    return next((name for name in candidates if name in record), None)


def _list(record: Record, name: str) -> Any:
    value = record[name]
    if isinstance(value, str):
        try:
            return parse_json(value)
        except NotJson:
            raise BarError(
                f"{name} must be a list of at least one message, or the JSON text of one"
            ) from None
    return value


def _held(record: Record, column: str | None) -> Any:
    name = column_of(record, column)
    assert name is not None  # a record without one isn't of this form
    return _list(record, name)


def _begins_with(record: Record, column: str | None, key: str) -> bool:
    name = column_of(record, column)
    messages = None if name is None else _list(record, name)
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and key in first


def _is_sharegpt(record: Record, column: str | None) -> bool:
    return _begins_with(record, column, _FROM)


def _is_messages(record: Record, column: str | None) -> bool:
    return column_of(record, column) is not None and not _is_sharegpt(record, column)


def _messages(record: Record, column: str | None) -> list[Message]:
    return turns(_held(record, column))


def _sharegpt(record: Record, column: str | None) -> list[Message]:
    raw = _held(record, column)
    return turns([_renamed(turn) for turn in raw] if isinstance(raw, list) else raw)


def _renamed(turn: Any) -> Any:
    """A ShareGPT turn with OpenAI's keys."""
    if not isinstance(turn, Mapping):
        return turn
    names = {_FROM: _ROLE, _VALUE: CONTENT}
    renamed = {names.get(key, key): value for key, value in turn.items()}
    if renamed.get(_ROLE) != _CALL_ROLE:
        return renamed
    calls = renamed.pop(CONTENT, None)
    return renamed | {_ROLE: "assistant", FUNCTION_CALLS: _parsed(calls)}


def _parsed(calls: Any) -> Any:
    """Calls from JSON text; what isn't JSON is taken for calls in words."""
    try:
        return parse_json(calls) if isinstance(calls, str) else calls
    except NotJson:
        return calls


MESSAGES = Form("messages", "messages with role and content", _is_messages, _messages)
SHAREGPT = Form("sharegpt", "ShareGPT turns with from and value", _is_sharegpt, _sharegpt)
