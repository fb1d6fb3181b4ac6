"""A job's nodes, which tell each other that they live and that ranks of theirs failed.

Ranks that wait for one that is gone notice it late, over NCCL only when their watch ends them. So
the launcher of each node tells the others by the store at which the ranks meet, and all end theirs.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.heartbeat import blamed_hosts

_POLL_SECONDS = 0.5
# How long a node may take to start, may give no sign of life, and, once ranks failed elsewhere, may
# take to end its own.
JOIN_SECONDS = 600.0
SILENT_SECONDS = 60.0
ENDING_SECONDS = 20.0
_ENDED_TOGETHER_SECONDS = 5.0
_FAILURE = "failure"


@dataclass(frozen=True)
class Failure:
    """The end of a job's ranks, as far as the node that noticed it first could tell."""

    what: str  # "rank 3 on n2 was ended by SIGKILL"
    hosts: tuple[str, ...] = ()  # machines that seem to be at fault
    again: bool = False  # whether it's no fault of the program's, so that others may succeed


class Nodes(threading.Thread):
    """The nodes of a job as one of them sees them. Node 0 has the store, and outlives the others.

    A thread speaks with the store: a call may hang for long where the store's node is gone.
    """

    def __init__(self, node: int, count: int, host: str, address: str, port: int) -> None:
        super().__init__(daemon=True, name="nodes")
        self.node, self.count, self.host = node, count, host
        try:
            self.server = dist.TCPStore(
                address,
                port,
                is_master=node == 0,
                wait_for_workers=False,
                timeout=timedelta(seconds=JOIN_SECONDS),
            )
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            raise BarError(f"node {node} on {host} can't meet the others: {reason}") from None
        self.store = dist.PrefixStore("nodes", self.server)
        self.failure: Failure | None = None  # the first of all nodes
        self.writes = node == 0  # down what failed; one node does
        self._mine: Failure | None = None
        self._ended = self._leaving = False
        # Node 0 sees who lives: the last sign of each node, when it came, and the node's host.
        started = time.monotonic()
        self._signs = {other: (b"", started) for other in range(count) if other != node}
        self._hosts: dict[int, str] = {}
        self._done: set[int] = set()

    def fail(self, failure: Failure) -> None:
        """Tell the others that ranks of this node failed, unless another node was first."""
        self._mine = self._mine or failure

    def leave(self, seconds: float) -> None:
        """Tell that this node's ranks have ended; node 0 waits `seconds` for the others to.

        Nodes that end none of theirs after a failure are lost, and take the blame for it.
        """
        self._ended = True
        deadline = time.monotonic() + (seconds if self.node == 0 else ENDING_SECONDS)
        while self.is_alive() and time.monotonic() < deadline:
            if self.failure is not None:
                deadline = min(deadline, time.monotonic() + ENDING_SECONDS)
            time.sleep(0.1)
        missing = sorted(set(self._signs) - self._done) if self.node == 0 else []
        if missing and self.failure is not None:
            self.failure = self._lost(missing)

    def run(self) -> None:
        """Exchange news until this node has ended, and for node 0 until all have."""
        beats = 0
        try:
            while True:
                beats += 1
                ended = self._ended  # what failed was told before: this round still passes it on
                self.store.set(f"alive/{self.node}", f"{beats} {self.host}")
                if self._mine is not None and self.failure is None:
                    self.store.compare_set(
                        _FAILURE, "", json.dumps(dataclasses.astuple(self._mine))
                    )
                if self.failure is None and self.store.check([_FAILURE]):
                    what, hosts, again = json.loads(self.store.get(_FAILURE))
                    # Ranks that hang say themselves which of them is at fault.
                    hosts = [*hosts, *blamed_hosts(self.server)]
                    self.failure = Failure(what, tuple(dict.fromkeys(hosts)), again)
                if ended:
                    self.store.set(f"ended/{self.node}", "")
                if self.node == 0:
                    self._look_for_signs()
                elif 0 not in self._hosts and self.store.check(["alive/0"]):
                    self._hosts[0] = _host_in(self.store.get("alive/0"))
                if ended and (self.node != 0 or self._done == set(self._signs)):
                    return
                time.sleep(_POLL_SECONDS)
        except dist.DistError:
            # Node 0 leaves last, so its machine has failed; or SLURM ends all, this one next.
            if not self._ended:
                time.sleep(_ENDED_TOGETHER_SECONDS)
                self.failure = self.failure or self._lost([0])
                self.writes = self.node == 1

    def _look_for_signs(self) -> None:
        now, silent = time.monotonic(), []
        for other in set(self._signs) - self._done:
            if self.store.check([f"ended/{other}"]):
                self._done.add(other)
                continue
            sign, since = self._signs[other]
            if self.store.check([f"alive/{other}"]):
                new = self.store.get(f"alive/{other}")
                if new != sign:
                    self._signs[other] = new, now
                    self._hosts[other] = _host_in(new)
                    continue
            if now - since > (SILENT_SECONDS if sign else JOIN_SECONDS):
                silent.append(other)
        if silent and self.failure is None:
            self.fail(self._lost(sorted(silent)))

    def _lost(self, nodes: list[int]) -> Failure:
        hosts = tuple(self._hosts.get(node, f"node {node}") for node in nodes)
        known = tuple(self._hosts[node] for node in nodes if node in self._hosts)
        return Failure(f"{', '.join(hosts)} gave no sign of life any more", known, again=True)


def _host_in(sign: bytes) -> str:
    return sign.decode().split(" ", 1)[1]
