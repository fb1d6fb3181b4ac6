"""What an answer is worth: one file a rule, one line here that registers it.

A verifier is `score(item, response) -> float in [0, 1]`, where `item` is the record that the prompt
came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_bar.recipe.schema import Source
from megatron_bar.rlvr.verifiers import exact, toy

Verifier = Callable[[dict[str, Any], str], float]


def verifier_for(source: Source) -> Verifier:
    """The rule that scores answers to a source's items."""
    return toy.verifier(source.toy) if source.toy else exact.score
