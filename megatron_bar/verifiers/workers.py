"""Helper processes that answer one request at a time, and are replaced when they don't answer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megatron_bar.runtime.errors import MachineError
from megatron_bar.runtime.stopping import unheard

MAX_MESSAGE = 1 << 16  # bytes
_START_SECONDS = 120.0  # importing, on a busy machine


class Worker:
    """One process and the socket to it. It says hello, then replies to each message with one."""

    def __init__(
        self,
        what: str,
        command: Callable[[int], Sequence[str]],
        environment: dict[str, str] | None = None,
        python: str = sys.executable,
        inherited: Sequence[int] = (),
    ) -> None:
        """`command`: Python's arguments for a given descriptor of the socket's other end.

        `inherited`: descriptors of ours that the process has under the same numbers.
        """
        self._what = what
        self._command = command
        self._environment = environment
        self._python = python
        self._inherited = list(inherited)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._hello: dict[str, Any] = {}

    def start(self) -> dict[str, Any]:
        """Start the process unless it runs. Returns its hello; raises MachineError for none."""
        if self._process is not None:
            return self._hello
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, unheard():
            self._process = subprocess.Popen(
                [self._python, *self._command(theirs.fileno())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno(), *self._inherited],
                start_new_session=True,
            )
        hello = self._receive(_START_SECONDS)
        if hello is None:
            self._process.kill()
            said = self._process.communicate()[1].decode(errors="replace").strip()
            self.stop()
            raise MachineError(
                f"{self._what} can't start: {said.splitlines()[-1] if said else 'no answer'}"
            )
        self._hello = hello
        return hello

    def ask(
        self, message: Any, seconds: float, descriptors: Sequence[int] = ()
    ) -> dict[str, Any] | None:
        """The reply, or None if there is none in time: then the process is stopped."""
        if not self.send(message, descriptors):
            return None
        reply = self._receive(seconds)
        if reply is None:
            self.stop()
        return reply

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> bool:
        """Start the process unless it runs, and tell whether the message got there."""
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        self.start()
        assert self._socket is not None
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)
        except OSError:
            self.stop()
            return False
        return True

    def stop(self) -> None:
        """Kill the process; the next request starts another."""
        if self._process is not None:
            with self._process as process:  # waits for it and closes its pipe
                process.kill()
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = None

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        assert self._socket is not None  # asked for after a start alone
        self._socket.settimeout(seconds)
        try:
            message = self._socket.recv(MAX_MESSAGE)
        except OSError:  # the time is up, or the connection is gone
            return None
        return json.loads(message) if message else None


class WorkerPool:
    """Workers that any number of threads may share, one thread at a time each."""

    def __init__(self, make: Callable[[], Worker], count: int) -> None:
        self._workers = [make() for _ in range(count)]
        # The last used first: one thread alone keeps one process, and that one's memory, warm.
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    @contextlib.contextmanager
    def worker(self) -> Iterator[Worker]:
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


def serve(control: socket.socket, hello: Any, answer: Callable[[Any, list[int]], Any]) -> None:
    """A worker's side: `answer(message, descriptors)` to each message, until the pool is gone."""
    control.sendall(json.dumps(hello).encode())
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # no one reads it from here on, so it would fill up and block
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 16)
        if not message:
            return
        control.sendall(json.dumps(answer(json.loads(message), descriptors)).encode())
