"""The ranks of one node: started with the environment torchrun would give them, watched, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

from megatron_bar.launch.slurm import numa
from megatron_bar.runtime.stopping import CONTINUE_LATER, STOP_SIGNALS

_STOPPED = (CONTINUE_LATER, *(-number for number in STOP_SIGNALS))


class NodeRanks:
    """Ranks that run one command. What they write to stderr is marked with host and rank."""

    def __init__(
        self, command: Sequence[str], node: int, nodes: int, ranks: int, host: str, run_id: str
    ) -> None:
        self.first, self.host = node * ranks, host
        self.ranks: list[subprocess.Popen] = []
        self._readers = []
        self._ended_by_us = False
        places = numa.cpus_of_ranks(ranks)
        for local in range(ranks):
            environment = {
                "RANK": self.first + local,
                "LOCAL_RANK": local,
                "GROUP_RANK": node,
                "WORLD_SIZE": nodes * ranks,
                "LOCAL_WORLD_SIZE": ranks,
                # The store is the launcher's, so that no rank's end takes it from the others.
                "TORCHELASTIC_USE_AGENT_STORE": True,
                "TORCHELASTIC_RESTART_COUNT": 0,
                "TORCHELASTIC_RUN_ID": run_id,
            }
            rank = subprocess.Popen(
                command,
                stderr=subprocess.PIPE,
                env=os.environ | {name: str(value) for name, value in environment.items()},
            )
            if places is not None:
                with contextlib.suppress(OSError):  # it may have ended
                    os.sched_setaffinity(rank.pid, places[local])
            assert rank.stderr is not None
            reader = threading.Thread(
                target=_pass_on,
                args=(rank.stderr, f"[{host} rank {self.first + local}] ".encode()),
                daemon=True,
            )
            reader.start()
            self.ranks.append(rank)
            self._readers.append(reader)

    def running(self) -> bool:
        return any(rank.poll() is None for rank in self.ranks)

    def failed(self) -> dict[int, int]:
        """Exit statuses of ranks that neither ended well nor stopped to go on later, nor were
        ended here; minus a signal's number where one ended it."""
        return {} if self._ended_by_us else self._ended_with(lambda code: code not in _STOPPED)

    def stopped(self) -> bool:
        """Whether some rank stopped to go on later; one that was starting died of the signal."""
        return bool(self._ended_with(lambda code: code in _STOPPED))

    def _ended_with(self, of_kind) -> dict[int, int]:
        codes = ((self.first + local, rank.poll()) for local, rank in enumerate(self.ranks))
        return {rank: code for rank, code in codes if code and of_kind(code)}

    def signal(self, number: int) -> None:
        for rank in self.ranks:
            rank.send_signal(number)  # none to one that has ended

    def end(self, grace: float) -> None:
        """End those that run after `grace` seconds for their last words."""
        deadline = time.monotonic() + grace
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.running():
            self._ended_by_us = True
            self.signal(signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()
        for reader in self._readers:
            reader.join(1)  # a child of a rank's may still hold the pipe

    @contextlib.contextmanager
    def given_warnings(self) -> Iterator[None]:
        """Pass SLURM's warnings on: on many clusters it signals a task's first process alone.

        SIGUSR1 comes before the time limit, SIGTERM before a preemption that grants some time.
        Ranks that were given it already don't mind; one that is only starting dies of it.
        """

        def pass_on(number: int, frame: FrameType | None) -> None:
            self.signal(number)

        before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _pass_on(pipe: IO[bytes], mark: bytes) -> None:
    """Write whole lines, so that those of several ranks don't mix."""
    for line in pipe:
        with contextlib.suppress(OSError):  # the log's disk is full: the rank mustn't wait for it
            sys.stderr.buffer.write(mark + line)
            sys.stderr.buffer.flush()
