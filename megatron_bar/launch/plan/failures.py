"""The time that one job takes where nodes fail: each attempt of it, and what is to be expected.

Failures come at random, without memory, as those of a cluster in its middle age do.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """The work of one job, in seconds.

    `interval` of work lie between two saves; infinite where it begins anew. A save stops the work
    for `pause`, or can be gone on from `delay` after it, where it is written while work goes on.
    """

    seconds: float
    interval: float = math.inf
    pause: float = 0.0
    delay: float = 0.0

    def to_finish(self, left: float) -> float:
        """Seconds that `left` of the work takes undisturbed: it is saved at its end, too."""
        return left + math.ceil(left / self.interval) * self.pause if left > 0 else 0.0


@dataclass(frozen=True)
class Attempt:
    """Seconds of one start of a job by what they went into, and whether a node failed."""

    starting: float
    kept: float = 0.0  # work that a save or the end has kept
    saving: float = 0.0
    redone: float = 0.0  # work that a failure took
    failed: bool = False

    @property
    def seconds(self) -> float:
        return self.starting + self.kept + self.saving + self.redone


def attempt(
    work: Work,
    left: float,
    start: float,
    mtbf: float,
    limit: float,
    rng: random.Random,
) -> Attempt:
    """Start a job that has `left` seconds of work, `start` seconds before its first step.

    Its nodes fail after `mtbf` seconds in the mean; `limit` is how long a job may run. It saves
    before that.
    """
    failure = rng.expovariate(1 / mtbf) if mtbf < math.inf else math.inf
    running = min(failure, limit) - start
    failed = failure < limit
    if running <= 0:
        return Attempt(min(failure, limit), failed=failed)
    if work.to_finish(left) <= running:
        return Attempt(start, left, work.to_finish(left) - left)
    if not failed and work.interval < math.inf:
        worked = max(running - work.pause, 0.0)  # it is told to stop in time for a save
        saves = int(worked // (work.interval + work.pause))
        kept = max(worked - saves * work.pause, 0.0)
        return Attempt(start, kept, running - kept)
    cycle = work.interval + work.pause
    saves = max(int((running - work.delay) // cycle), 0)
    if not saves:
        return Attempt(start, redone=running, failed=failed)
    return Attempt(
        start, saves * work.interval, saves * work.pause, running - saves * cycle, failed=failed
    )


def expected_seconds(work: Work, start: float, mtbf: float) -> float:
    """Mean time to the end of `work`, the first start left out.

    Each interval and its save are tried until no node fails in them. J. T. Daly, A higher order
    estimate of the optimum checkpoint interval for restart dumps, 2006.
    """
    if mtbf == math.inf:
        return work.to_finish(work.seconds)
    whole = int(work.seconds // work.interval)
    rest = work.seconds - whole * work.interval if whole else work.seconds
    tries = whole * math.expm1((work.interval + work.pause) / mtbf) if whole else 0.0
    if rest:
        tries += math.expm1((rest + work.pause) / mtbf)
    return mtbf * math.exp(start / mtbf) * tries


def best_interval(pause: float, mtbf: float) -> float:
    """Seconds of work between saves that cost least; Daly's estimate, which refines Young's."""
    if pause >= 2 * mtbf:
        return mtbf
    ratio = pause / (2 * mtbf)
    return math.sqrt(2 * pause * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - pause
