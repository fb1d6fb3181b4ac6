"""Two models on the same items: whether their scores differ by more than chance.

An item that is hard is hard for both, so differences item by item tell more than two intervals
beside each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_bar.analysis.intervals import Interval, bootstrap

LEVEL = 0.05  # below it a difference isn't noise
WITHIN_NOISE = "within noise"


@dataclass(frozen=True)
class Paired:
    """Our score less theirs, over the items that both were asked."""

    difference: Interval  # items resampled in pairs
    better: int  # items on which ours is better
    worse: int
    # McNemar's exact one, where each item is right or wrong: how often so uneven a split comes from
    # tossing a coin for each item on which the two differ. None with partial credit.
    p: float | None

    @property
    def within_noise(self) -> bool:
        """Whether chance explains it: by `p`, else by whether the interval holds 0."""
        if self.p is not None:
            return self.p >= LEVEL
        return self.difference.low <= 0 <= self.difference.high

    @property
    def verdict(self) -> str:
        """`within noise`, else the p or that the interval leaves 0 out."""
        if self.within_noise:
            return WITHIN_NOISE
        return "0 is outside" if self.p is None else f"p {self.p:.1g}"


def paired_test(ours: dict[str, Any], theirs: dict[str, Any]) -> Paired | None:
    """Two results of one task compared; None if the scores of their items aren't known.

    None too where they weren't asked the same items, as far as their samples tell.
    """
    mine, other = ours.get("items"), theirs.get("items")
    if not mine or not other or len(mine) != len(other) or _asked(ours) != _asked(theirs):
        return None
    differences = np.subtract(mine, other)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    binary = {*mine, *other} <= {0.0, 1.0}
    return Paired(
        bootstrap(differences.tolist()), better, worse, mcnemar(better, worse) if binary else None
    )


def _asked(result: dict[str, Any]) -> list[Any]:
    return [(sample.get("item"), sample.get("prompt")) for sample in result.get("samples", ())]


def mcnemar(better: int, worse: int) -> float:
    """The two-sided exact p of McNemar's test: a binomial test of a fair coin."""
    tosses = better + worse
    tail = sum(math.comb(tosses, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**tosses)
