"""Waiting for servers, which may take longer than a collective may."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from megatron_bar.runtime.distributed import all_reduce_any

_MEET_SECONDS = 0.5
Result = TypeVar("Result")


def wait_for(work: Callable[[], Result] | None) -> Result | None:
    """The result of `work`, on ranks that have some. All ranks call this, and return together.

    The work goes on in a thread, and meanwhile the ranks meet, again and again: a rank that waited
    in one collective for the others' work would give up after some minutes. Raises what it raises.
    """
    with ThreadPoolExecutor(1) as thread:
        futures = [] if work is None else [thread.submit(work)]
        while all_reduce_any(bool(wait(futures, _MEET_SECONDS).not_done)):
            pass
        return futures[0].result() if futures else None
