"""A conversation: messages with a role, and what makes a list of them one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_bar.data.json_text import Digits
from megatron_bar.data.message_keys import CONTENT, FUNCTION_CALLS, FUNCTIONS, PARTS, REASONING
from megatron_bar.runtime.errors import BarError

ROLES = ("system", "user", "assistant", "environment")

Message = dict[str, Any]


def check_messages(messages: Any) -> None:
    """Refuse what isn't a conversation, before any template or tokenizer is at hand.

    Raises BarError for an unknown role, for content that isn't text or no text that can be written,
    for functions and calls where they don't belong, and for an assistant turn with neither content
    nor function calls.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BarError("messages must be a list of at least one message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise BarError(f"message {number} is {type(message).__name__}, not a role and content")
        role = message.get("role")
        if role not in ROLES:
            raise BarError(f"message {number} has role {role!r}; roles are {', '.join(ROLES)}")
        for key in (*PARTS, *REASONING):
            value = message.get(key)
            if value is not None:
                check_text(value, f"message {number}: {key}")
        if role == "assistant":
            if not message.get(CONTENT) and not message.get(FUNCTION_CALLS):
                raise BarError(f"message {number}: neither content nor function_calls is given")
        elif message.get(CONTENT) is None:
            raise BarError(f"message {number}: content is missing")
        misplaced = FUNCTIONS if role == "assistant" else FUNCTION_CALLS
        if message.get(misplaced):
            raise BarError(f"message {number}: {misplaced} don't belong to a turn of role {role}")


def check_text(value: Any, what: str) -> None:
    """Raise BarError for a value that isn't text, or holds half a character."""
    if isinstance(value, Digits):
        raise BarError(f"{what} is a number of {len(value):,} digits, not text")
    if not isinstance(value, str):
        raise BarError(f"{what} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BarError(
            f"{what} holds half of a character ({ascii(value[error.start])[1:-1]}, one "
            "of a surrogate pair); mend it or leave the item out"
        ) from None
