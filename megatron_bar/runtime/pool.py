"""Work that is spread over processes of this machine, and children that end with their parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.stopping import unheard

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerKilled(BarError):
    """A child ended without a word. What the others did stands."""


def cores() -> int:
    """The number of cores this process may use: fewer than the machine has, where SLURM says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def die_with_parent() -> None:
    """Be killed when the process that forked this one ends.

    A run that is killed must not leave children behind that go on writing into its folder.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def die_with_starter() -> None:
    """Be killed when the starter ends, in a fork server's child: the server outlives the starter.

    The starter is the process that started it by multiprocessing.
    """
    starter = multiprocessing.parent_process()
    assert starter is not None

    def wait_and_die() -> None:
        starter.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_die, daemon=True).start()


def spread(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int
) -> Iterator[Result]:
    """`function` of each task, in the order they end, on up to `processes` forked children.

    One task, or one process, is done here. `function` isn't pickled, so it may hold open files and
    tokenizers. torch computes in one thread in children; its other threads don't survive a fork.

    Raises what `function` raises, and WorkerKilled if a child is killed.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), _become_worker, (function,)
    )
    try:
        with unheard():  # this process hears stop signals, and ends its children
            futures = [pool.submit(_work, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise WorkerKilled(
            f"one of {processes} processes was killed, most likely for want of memory; "
            "use fewer processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]  # of this worker


def _become_worker(function: Callable[[Any], Any]) -> None:
    global _function
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    _function = function


def _work(task: Any) -> Any:
    return _function(task)
