"""The kinds of functions that a user may give. Light, as their processes import it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_bar.verifiers.moves import as_move
from megatron_bar.verifiers.scores import as_score


@dataclass(frozen=True)
class Kind:
    """A kind of function: what it is called, takes and gives."""

    name: str
    arguments: tuple[str, ...]
    gives: str
    read: Callable[[Any], Any]  # what it returned as a JSON value; raises VerifierFailed


VERIFIER = Kind("verifier", ("prompt", "response", "reference"), "score", as_score)
ENVIRONMENT = Kind("environment", ("messages", "reference"), "move", as_move)
KINDS = {kind.name: kind for kind in (VERIFIER, ENVIRONMENT)}
