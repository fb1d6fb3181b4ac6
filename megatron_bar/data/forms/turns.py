"""One message of any form as the project's own: role, content, functions and function calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_bar.data.forms.calls import calls_text, functions_text
from megatron_bar.data.message_keys import (
    CALL_KEYS,
    CONTENT,
    FUNCTION_CALLS,
    FUNCTIONS,
    LOSS,
    LOSS_KEYS,
    PARTS,
    changes_learning,
)
from megatron_bar.data.messages import Message, check_text
from megatron_bar.runtime.errors import BarError

# Where the meaning is plain. Names that aren't here stay as they are, and are refused later.
_ROLES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "environment",
    "ipython": "environment",
    "function": "environment",
    "observation": "environment",
    "function_response": "environment",
}
_UNDERSTOOD = {"role", *PARTS, *CALL_KEYS, *LOSS_KEYS}
_TEXT_PARTS = ("text", "input_text", "output_text")


def turns(raw: Any) -> list[Message]:
    """Messages of a list. Raises BarError for what isn't one, naming the message by number."""
    if not isinstance(raw, list) or not raw:
        raise BarError("messages must be a list of at least one message, or the JSON text of one")
    made = []
    for number, message in enumerate(raw, 1):
        if not isinstance(message, Mapping):
            raise BarError(f"message {number} is {type(message).__name__}, not a role and content")
        try:
            made.append(_turn(message))
        except BarError as error:
            raise BarError(f"message {number}: {error}") from None
    return made


def said(role: str, content: str) -> Message:
    """A turn of one role and its words."""
    return {"role": role, CONTENT: content}


def _turn(raw: Mapping[str, Any]) -> Message:
    given = {key: value for key, value in raw.items() if value is not None and value != []}
    role = given.get("role")
    if isinstance(role, str):
        role = _ROLES.get(role.lower(), role.lower())
    message: Message = {"role": role}
    if CONTENT in given:
        message[CONTENT] = _text(given[CONTENT])
    if FUNCTIONS in given:
        message[FUNCTIONS] = functions_text(given[FUNCTIONS])
    if (calls := _calls(given)) is not None:
        message[FUNCTION_CALLS] = calls
    if not _carries_loss(given, role):
        message[LOSS] = False
    for key, value in given.items():
        if key in _UNDERSTOOD or value in ("", {}):
            continue
        if changes_learning(key):
            raise BarError(
                f"key {key!r} would change what is learned, and isn't understood; "
                "remove it from the data"
            )
        message[key] = value
    return message


def _calls(given: Mapping[str, Any]) -> str | None:
    """The calls of a turn as text, from the one key that has some."""
    keys = [key for key in (FUNCTION_CALLS, *CALL_KEYS) if given.get(key)]
    if len(keys) > 1:
        raise BarError(f"{' and '.join(keys)} are given; keep one of them")
    return calls_text(given[keys[0]], is_json=keys[0] in CALL_KEYS) if keys else None


def _text(content: Any) -> Any:
    """Text of a list of parts; what isn't a list stays as it is."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        match part:
            case str(text):
                texts.append(text)
            case {"type": kind, "text": str(text)} if kind in _TEXT_PARTS:
                texts.append(text)
            case {"text": str(text)} if len(part) == 1:
                texts.append(text)
            case {"type": str(kind)}:
                raise BarError(f"content has a part of type {kind!r}, and only text is read")
            case _:
                raise BarError("content has a part that is neither text nor has a type")
    for text in texts:
        check_text(text, "a part of content")
    return "".join(texts)


def _carries_loss(given: Mapping[str, Any], role: Any) -> bool:
    """What the keys about loss say of a turn; without one it may."""
    values = {key: given[key] for key in LOSS_KEYS if key in given}
    for key, value in values.items():
        if isinstance(value, (list, dict, str)) or value not in (0, 1):
            raise BarError(f"{key} is {value!r}; only 0, 1, false and true are understood")
    if len({bool(value) for value in values.values()}) > 1:
        raise BarError(f"{' and '.join(values)} contradict each other")
    if any(values.values()) and role != "assistant":
        raise BarError(
            f"{next(iter(values))} asks for loss on a {role} turn; only what the "
            "assistant says carries loss"
        )
    return all(values.values())
