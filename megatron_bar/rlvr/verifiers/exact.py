"""Exact match with the reference reply, but for white space at its ends."""

from __future__ import annotations

from typing import Any


def score(item: dict[str, Any], response: str) -> float:
    """1 if `response` is the last message's content (and its function calls), else 0."""
    reply = item["messages"][-1]
    expected = reply.get("content") or ""
    if calls := reply.get("function_calls"):
        expected += f"<function_calls>{calls}</function_calls>"
    return float(response.strip() == expected.strip())
