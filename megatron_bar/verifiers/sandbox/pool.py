"""The trainer's side of the sandbox: a few zygotes, asked by any number of threads."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_bar.runtime.pool import cores
from megatron_bar.verifiers.workers import Worker, WorkerPool

_LIBRARY = str(Path(__file__).parents[3])  # the folder that holds megatron_bar
_GRACE_SECONDS = 1.5  # beyond a test's own limit, before its zygote is given up
# Nothing of the user's or of site-packages; the same order of sets and so the same reward each run.
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
_FLAGS = ("-s", "-S", "-P", "-B")
_WHAT = "the sandbox (it needs Linux on x86-64 with seccomp)"


@dataclass(frozen=True)
class Limits:
    """Limits of one run."""

    wall: float = 15.0  # seconds
    cpu: float = 10.0  # seconds of each process, rounded up
    memory: int = 1 << 30  # bytes of address space of each process
    output: int = 4 << 20  # bytes of any file, standard output included


@dataclass(frozen=True)
class Result:
    """The end of a program, and what it wrote."""

    stdout: str
    finished: bool  # by itself, without an error, in time


class Sandbox:
    """Runs tests and programs, `workers` at a time; see the package for what it contains.

    Threads may share it. Its processes end with it, or with the trainer.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._pool = WorkerPool(lambda: Worker(_WHAT, _command, _ENVIRONMENT), workers or cores())

    def close(self) -> None:
        self._pool.close()

    def describe(self) -> str:
        """A line on what this machine lets it contain. Raises BarError where it can't start."""
        with self._pool.worker() as worker:
            hello = worker.start()
        user = "another user" if hello["privileged"] else "the same user"
        if hello["namespaces"]:
            return f"seccomp, limits, namespaces, a root folder of its own, {user}"
        return (f"seccomp, limits, no files at all, {user}; namespaces can't be had here "
                f"({hello['reason']})")

    def run_tests(
        self,
        source: str,
        tests: Sequence[str],
        remote: Sequence[str],
        before: str = "",
        setup: str = "",
        limits: Limits = Limits(),
    ) -> list[bool]:
        """The outcome of each of the tests, in one process for all of them.

        `tests` are statements; the names in `remote` are those of the code under test. `before`
        runs ahead of fetching these, `setup` after it, both on the tests' side.
        """
        job = {"before": before, "remote": list(remote), "setup": setup, "tests": list(tests)}
        with contextlib.ExitStack() as stack:
            code, checks, verdict = (
                _file(stack, data) for data in (source.encode("utf-8", "replace"),
                                                json.dumps(job).encode(), b""))
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            self._run([("solution", [code, theirs.fileno()]),
                       ("checker", [checks, ours.fileno(), verdict])], limits)
            marks = os.pread(verdict, len(tests), 0)
        return [marks[i:i + 1] == b"1" for i in range(len(tests))]

    def run_program(
        self, source: str, stdin: str, limits: Limits = Limits()
    ) -> Result:
        """The standard output of a program for this standard input."""
        with contextlib.ExitStack() as stack:
            code, inputs, outputs = (
                _file(stack, text.encode("utf-8", "replace")) for text in (source, stdin, ""))
            reply = self._run([("program", [code, inputs, outputs])], limits)
            text = os.pread(outputs, limits.output, 0).decode("utf-8", "replace")
        return Result(text, reply is not None and reply["in_time"] and reply["codes"][-1] == 0)

    def _run(
        self, processes: list[tuple[str, list[int]]], limits: Limits
    ) -> dict[str, Any] | None:
        job = {"processes": [(name, len(descriptors)) for name, descriptors in processes],
               "wall": limits.wall, "cpu": limits.cpu, "memory": limits.memory,
               "output": limits.output}
        with self._pool.worker() as worker:
            return worker.ask(job, limits.wall + _GRACE_SECONDS,
                              [d for _, descriptors in processes for d in descriptors])


def _command(control: int) -> list[str]:
    return [*_FLAGS, "-c", f"import sys; sys.path.append({_LIBRARY!r}); "
            "from megatron_bar.verifiers.sandbox import zygote; "
            f"zygote.main({control}, {_LIBRARY!r})"]


@functools.cache
def shared_sandbox() -> Sandbox:
    """The one sandbox of this process, made when first asked for."""
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox


def _file(stack: contextlib.ExitStack, data: bytes) -> int:
    """A file in memory, without a name, that is closed with the stack."""
    descriptor = os.memfd_create("sandbox")
    stack.callback(os.close, descriptor)
    os.truncate(descriptor, len(data))
    os.pwrite(descriptor, data, 0)
    return descriptor
