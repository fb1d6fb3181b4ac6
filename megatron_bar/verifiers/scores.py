"""Scores: the numbers that a verifier may return. Light, as processes of verifiers import it."""

from __future__ import annotations

from typing import Any

from megatron_bar.runtime.errors import VerifierFailed

_SHOWN = 80  # characters


def as_score(value: Any) -> float:
    """`value`, of any kind of number, as a float. Raises VerifierFailed if it isn't from 0 to 1."""
    try:
        # Text may look like a number, and whoever returns it meant something else.
        number = None if isinstance(value, (str, bytes)) else float(value)
    except Exception:  # whatever a foreign type may raise
        number = None
    if number is None or not 0 <= number <= 1:  # nan compares as false
        raise VerifierFailed(f"it returned {shown(value)}, and a score is a number from 0 to 1")
    return number


def shown(value: Any) -> str:
    """A few words that show the value and its type, for a message."""
    try:
        text = repr(value)
    except Exception:
        text = "something"
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return " ".join(f"{short} ({type(value).__name__})".split())
