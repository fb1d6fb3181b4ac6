"""Exact match with the reference, but for white space at the ends."""

from __future__ import annotations

from typing import Any


def score(prompt: str, response: str, reference: Any) -> float:
    """1 if the response is the reference, else 0."""
    return float(response.strip() == str(reference).strip())
