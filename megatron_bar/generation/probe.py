"""The proof that a server has the trainer's weights: what both say of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Logprobs = Sequence[Sequence[float]]
# From how many times on one distance is said to be smaller than another.
_NEARER = 2.0


@dataclass(frozen=True)
class Probe:
    """Rows of tokens, and what the trainer says of each but a row's first, at temperature 1."""

    rows: Sequence[Sequence[int]]
    logprobs: Logprobs

    def fault(self, found: Logprobs, before: Probe | None, limit: float) -> str | None:
        """The reason why a server that says `found` hasn't these weights, or None.

        `before` is what the trainer said before its last update: who is nearer to that has missed
        the update, be it far below the limit. Where the update moved less than two programs round
        apart, the two can't be told from each other, and don't have to be.
        """
        gap = distance(found, self.logprobs)
        if not gap <= limit:
            return (
                f"of the same tokens its log-probabilities are {gap:.2g} from the trainer's in "
                f"the mean, more than max_rollout_logprob_gap {limit:g}"
            )
        if before is not None:
            old = distance(found, before.logprobs)
            if gap > _NEARER * old:
                return (
                    f"it has the weights of the step before: its log-probabilities are "
                    f"{old:.2g} from theirs, and {gap:.2g} from those of now"
                )
        return None


def distance(one: Logprobs, other: Logprobs) -> float:
    """The mean distance of two log-probabilities of the same token."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)
