"""Stragglers: which rank the others wait for in a step, and for how long.

A rank's own time is that from its first forward pass to where it gives its gradients to the others;
what it then waits, it waits for the slowest. Ranks that share a model (tensor, expert, pipeline
parallel) meet in every layer, so that a slow one makes all of them slow alike. Marks on the GPU's
queue are read when a step is logged: nothing waits for them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from megatron_bar.runtime.console import warn
from megatron_bar.runtime.distributed import of_all_ranks
from megatron_bar.runtime.ranks import is_main, own_host

# A rank whose own time is longer than the median's by this factor, in so many logs in a row.
_TOO_SLOW, _IN_A_ROW = 1.2, 3


class Waiting:
    """The waiting of all ranks between two logs. Every rank calls its methods alike."""

    def __init__(
        self, model: torch.nn.Module, config: Any, clock: Callable[[], Any] | None = None
    ) -> None:
        """Look on at the passes of a model, and at Megatron's `config`, which has what ends them.

        `clock` takes a mark, by default on the GPU's queue where there is one.
        """
        self._mark = clock or (_event if torch.cuda.is_available() else time.perf_counter)
        self._opened: Any = None
        self._marks: list[tuple[Any, Any]] = []
        self._slow_before: tuple[int | None, int] = None, 0
        self._hosts = of_all_ranks(own_host())
        model.register_forward_pre_hook(self._begins)
        reduce = config.finalize_model_grads_func

        def gives_gradients(*args: Any, **kwargs: Any) -> Any:
            self._marks.append((self._opened, self._mark()))
            self._opened = None
            return reduce(*args, **kwargs)

        config.finalize_model_grads_func = gives_gradients

    def _begins(self, model: torch.nn.Module, inputs: tuple) -> None:
        if self._opened is None and model.training:
            self._opened = self._mark()

    def metrics(self, label: str | None = None) -> dict[str, Any]:
        """The metrics since the last call; starts anew. Nothing for a lone rank, or without a step.

        `ranks_waiting_share`: how long ranks wait for the slowest, in the mean, as a part of the
        time that it computes; `slowest_rank`: that one. One that is much slower than most, again
        and again, gets a line that begins with `label`: give one where all ranks have as much to
        do.
        """
        marks, self._marks = self._marks, []
        if len(self._hosts) == 1 or not marks:
            return {}
        own = sum(_seconds(first, last) for first, last in marks)
        mine = torch.tensor([own], dtype=torch.float64, device=torch.cuda.current_device())
        everyones = [torch.empty_like(mine) for _ in self._hosts]
        dist.all_gather(everyones, mine)
        times = torch.cat(everyones).tolist()
        longest = max(times)
        slowest = times.index(longest)
        if label is not None:
            self._tell(label, slowest, longest / max(statistics.median(times), 1e-9))
        share = 1 - statistics.fmean(times) / max(longest, 1e-9)
        return {"ranks_waiting_share": share, "slowest_rank": slowest}

    def _tell(self, label: str, rank: int, factor: float) -> None:
        before, times = self._slow_before
        if factor < _TOO_SLOW:
            self._slow_before = None, 0
            return
        times = times + 1 if rank == before else 1
        self._slow_before = rank, times
        if times == _IN_A_ROW and is_main():
            warn(
                f"{label}: rank {rank} on {self._hosts[rank]} is slow: it computes "
                f"{factor:.2f} times as long as the median rank, and the others wait for it"
            )


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(first: Any, last: Any) -> float:
    if isinstance(first, float):
        return last - first
    last.synchronize()
    return first.elapsed_time(last) / 1000
