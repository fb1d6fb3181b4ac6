"""Moves: what an environment may return. Light, as processes of environments import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_bar.runtime.errors import VerifierFailed
from megatron_bar.verifiers.scores import as_score, shown

# The next turn, as a message; or the end: with the conversation's reward, or None, which leaves
# that to the verifier.
Move = dict[str, str] | float | None

_ROLES = {"environment": "environment", "tool": "environment", "user": "user"}


def as_move(value: Any) -> Move:
    """`value` as a move; text alone is a turn of the environment.

    Raises VerifierFailed for a number that is no score, and for what is no move.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = {"role": "environment", "content": value}
    if not isinstance(value, Mapping):
        return as_score(value)
    role, content = value.get("role"), value.get("content")
    if set(value) != {"role", "content"} or role not in _ROLES or not isinstance(content, str):
        raise VerifierFailed(
            f"it returned {shown(value)}, and a turn is text, or a role "
            f"({', '.join(_ROLES)}) and content"
        )
    return {"role": _ROLES[role], "content": content}
