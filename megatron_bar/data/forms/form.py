"""The interface of a form of conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_bar.data.messages import Message
from megatron_bar.data.records import Record


@dataclass(frozen=True)
class Form:
    """One way in which people's records hold conversations.

    `fits(record, column)` tells whether a record looks like it, where `column` is the one that
    holds messages, or None for those that are usual. `messages(record, column)` makes the
    project's own messages of one that does; it raises BarError for what can't be said in them.
    """

    name: str
    what: str  # how a person would call it
    fits: Callable[[Record, str | None], bool]
    messages: Callable[[Record, str | None], list[Message]]
