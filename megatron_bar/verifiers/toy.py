"""The toy world's own rules, one a domain."""

from __future__ import annotations

import functools
from typing import Any

from megatron_bar.data import toy


def score(domain: str, prompt: str, response: str, reference: Any) -> float:
    """Exact match with the item's answer, or for code the function it computes."""
    return toy.score(domain, reference, response)


VERIFIERS = {f"toy/{domain}": functools.partial(score, domain) for domain in toy.ALL_DOMAINS}
