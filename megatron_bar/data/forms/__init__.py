"""Conversations as people have them, each form made into the project's own messages.

A form is a `Form` in a module of this folder and its place in FORMS. What all of them have in
common is here: columns beside the messages that belong to the conversation, and columns that
can't be left out.
"""

from __future__ import annotations

import contextlib
from typing import Any

from megatron_bar.data.forms import lists, pairs
from megatron_bar.data.forms.calls import functions_text
from megatron_bar.data.forms.form import Form
from megatron_bar.data.forms.turns import said
from megatron_bar.data.json_text import NotJson, parse_json
from megatron_bar.data.message_keys import FUNCTIONS
from megatron_bar.data.messages import Message, check_messages
from megatron_bar.data.records import Record
from megatron_bar.runtime.errors import BarError

# In the order in which a record is asked whether it is of the form.
FORMS: dict[str, Form] = {
    form.name: form
    for form in (lists.SHAREGPT, lists.MESSAGES, pairs.PROMPT_COMPLETION, pairs.ALPACA)
}
_SYSTEM_COLUMNS = ("system", "system_prompt")
_FUNCTION_COLUMNS = ("tools", "functions")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_PAIR = ("chosen", "rejected")
_LABELS = ("label", "kto_tag")  # of an answer: TRL's name, LLaMA-Factory's
_LOSS_COLUMNS = ("weight", "loss_mask")


def form_of(record: Record, column: str | None) -> Form:
    """The form that a record is of. Raises BarError for one of a form that isn't read."""
    _check_columns(record)
    if lists.column_of(record, column) is None:
        _refuse_pair(record)
    for form in FORMS.values():
        if form.fits(record, column):
            return form
    raise BarError(
        f"column {column or 'messages'!r} is missing; there are {', '.join(map(str, record))}, "
        f"which is no other form that is read either ({', '.join(FORMS)})"
    )


def read(form: Form, record: Record, column: str | None) -> list[Message]:
    """The conversation of a record, with its functions in the system turn.

    Raises BarError for what isn't a conversation and for what can't be said in messages.
    """
    _check_columns(record)
    if not form.fits(record, column):
        other = form_of(record, column)
        raise BarError(
            f"this is of the form {other.name}, and its source is read as {form.name}; "
            "make it a source of its own, or correct the source's format"
        )
    messages = form.messages(record, column)
    _check_preference(form, record, column, messages)
    system = _column(record, _SYSTEM_COLUMNS)
    if system:
        if messages[:1] and messages[0].get("role") == "system":
            raise BarError("there is a system turn and a column of that name; keep one of them")
        messages = [said("system", system), *messages]
    functions = _column(record, _FUNCTION_COLUMNS)
    if functions:
        messages = _offering(messages, functions)
    check_messages(messages)
    return messages


def _check_preference(
    form: Form, record: Record, column: str | None, messages: list[Message]
) -> None:
    """Refuse an answer that may be a bad one, and a question whose answers are a pair."""
    answered = messages[-1].get("role") == "assistant"
    if column is None and not (answered and form in (lists.MESSAGES, lists.SHAREGPT)):
        _refuse_pair(record)
    for name in _LABELS if answered else ():
        if _is_label(record.get(name)):
            raise BarError(
                f"this is a preference (column {name!r} labels the answer, good or "
                "bad), which no stage here learns from; keep the good ones, without "
                "the label"
            )


def _refuse_pair(record: Record) -> None:
    if all(record.get(name) is not None for name in _PAIR):
        raise BarError(
            "this is a preference pair (chosen and rejected), which dpo alone learns from; "
            "messages_column: chosen takes the chosen answers, where they are whole conversations"
        )


def _is_label(value: Any) -> bool:
    """True or false, as people write them."""
    if isinstance(value, str):
        return value.lower() in ("true", "false")
    return isinstance(value, (bool, int, float)) and value in (0, 1)


def _offering(messages: list[Message], functions: Any) -> list[Message]:
    """The messages with what may be called in their system turn, a new one if there is none."""
    if isinstance(functions, str):
        with contextlib.suppress(NotJson):  # else they are offered in words
            functions = parse_json(functions)
    if not functions:
        return messages
    text = functions_text(functions)
    declared = {message[FUNCTIONS] for message in messages if message.get(FUNCTIONS)}
    if declared == {text}:
        return messages
    if declared:
        raise BarError("functions are given in a column and in a message; keep one of them")
    if messages and messages[0].get("role") == "system":
        return [messages[0] | {FUNCTIONS: text}, *messages[1:]]
    return [said("system", "") | {FUNCTIONS: text}, *messages]


def _column(record: Record, names: tuple[str, ...]) -> Any:
    given = [name for name in names if record.get(name)]
    if len(given) > 1:
        raise BarError(f"columns {' and '.join(given)} are both given; keep one of them")
    return record[given[0]] if given else None


def _check_columns(record: Any) -> None:
    if not isinstance(record, dict):
        raise BarError(f"a record is {type(record).__name__}, not an object with columns")
    for column in _MEDIA:
        if record.get(column):
            raise BarError(f"column {column!r} isn't text, and the model reads nothing else")
    for column in _LOSS_COLUMNS:
        if record.get(column) not in (None, 1):
            raise BarError(
                f"column {column!r} would change what is learned, and isn't understood; "
                "give the key to messages, 0 or 1, or remove it"
            )
