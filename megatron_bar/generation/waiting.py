"""Waiting for servers, which may take longer than a collective may, or than notice is given.

Threads that wait for others' answers can't be woken, so all here are daemons: none keeps a process
from ending.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_bar.runtime.distributed import all_reduce_any, on_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.ranks import is_main
from megatron_bar.runtime.stopping import CutShort, asked_to_stop

_MEET_SECONDS = 0.5
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Begin `work` on a thread of its own; the future has what it returns or raises."""
    future: Future[Result] = Future()
    threading.Thread(target=_fulfil, args=(future, work), daemon=True).start()
    return future


def map_in_background(
    function: Callable[[Item], Result], items: Sequence[Item], count: int
) -> list[Result]:
    """Return the results of all `items`, of which `count` are worked on at once.

    Raises what one of them raises.
    """
    futures: list[Future[Result]] = [Future() for _ in items]
    left = iter(list(zip(items, futures)))  # each thread takes the next one

    def work() -> None:
        for item, future in left:
            _fulfil(future, functools.partial(function, item))

    for _ in range(min(count, len(items))):
        threading.Thread(target=work, daemon=True).start()
    return [future.result() for future in futures]


def _fulfil(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def wait_for(work: Callable[[], Result] | None) -> Result | None:
    """The result of `work`, on ranks that have some. All ranks call this, and return together.

    The work goes on in a thread, and meanwhile the ranks meet, again and again: a rank that waited
    in one collective for the others' work would give up after some minutes. Raises what it raises,
    and CutShort, on all ranks, where the stage is asked to stop before all have finished; nobody
    hears then what becomes of the work.
    """
    futures = [] if work is None else [in_background(work)]
    while all_reduce_any(bool(wait(futures, _MEET_SECONDS).not_done)):
        if all_reduce_any(asked_to_stop()):
            raise CutShort
    return futures[0].result() if futures else None


def from_main_at_length(work: Callable[[], Result]) -> Result:
    """Return on all ranks, which call this and may wait for long, what `work` does on the main one.

    Raises on all ranks what BarError it raises, and CutShort as `wait_for` does.
    """

    def caught() -> tuple[str | None, Result | None]:
        try:
            return None, work()
        except BarError as error:
            return str(error), None

    if not dist.is_initialized():
        return work()
    done = wait_for(caught if is_main() else None)
    fault, result = on_main(lambda: done)
    if fault:
        raise BarError(fault)
    return result
