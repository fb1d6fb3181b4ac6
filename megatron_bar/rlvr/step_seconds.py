"""The time of a step, by what it goes into, and the share in which devices wait."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch
import torch.distributed as dist


class StepSeconds:
    """The seconds of a step by part; all ranks time the same parts.

    `waiting` are the parts in which the training devices have nothing to do.
    """

    def __init__(self, waiting: frozenset[str]) -> None:
        self.waiting = waiting
        self.restart()

    def restart(self) -> None:
        """Begin a step; what lies before, such as saving, is part of none."""
        self._taken: defaultdict[str, float] = defaultdict(float)
        self._since = time.monotonic()

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the block's time to `part`."""
        torch.cuda.synchronize()
        started = time.monotonic()
        yield
        torch.cuda.synchronize()
        self.add(part, time.monotonic() - started)

    def add(self, part: str, seconds: float) -> None:
        self._taken[part] += seconds

    def of_step(self) -> dict[str, float]:
        """The metrics of the step, of the slowest rank in each part.

        Every rank calls this. `seconds_step` is the whole, with what no part has; `waiting_share`
        is the share of it in which the training devices wait, `servers_waiting_share` that in which
        servers, where these generate, have nothing to answer.
        """
        parts = {"step": time.monotonic() - self._since, **self._taken}
        seconds = torch.tensor(list(parts.values()), device=torch.cuda.current_device())
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        parts = dict(zip(parts, seconds.tolist()))
        step = max(parts["step"], 1e-9)
        waited = sum(taken for part, taken in parts.items() if part in self.waiting)
        shares = {"waiting_share": waited / step}
        if "servers" in parts:  # which may have begun in the step before
            shares["servers_waiting_share"] = max(0.0, 1 - parts["servers"] / step)
        return {f"seconds_{part}": taken for part, taken in parts.items()} | shares
