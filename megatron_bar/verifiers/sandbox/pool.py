"""The trainer's side of the sandbox: one zygote, asked by any number of threads."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_bar.runtime.pool import cores
from megatron_bar.verifiers.workers import MAX_MESSAGE, Worker

# Runs at a time for each core: those that sleep until their time is up stand beside the others.
_RUNS_PER_CORE = 4
_LIBRARY = str(Path(__file__).parents[3])  # the folder that holds megatron_bar
_GRACE_SECONDS = 10.0  # beyond a run's own limit, before its zygote is given up
# Nothing of the user's; the same order of sets and so the same reward each run; no threads of
# numpy's, since a process that has some can't enter namespaces.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_FLAGS = ("-s", "-S", "-P", "-B")
_WHAT = "the sandbox (it needs Linux on x86-64 with seccomp)"


@dataclass(frozen=True)
class Limits:
    """Limits of one run.

    Of the 1,093 reference solutions of MBPP and HumanEval that are at hand all but one need less
    than half of `cpu`.
    """

    cpu: float = 0.5  # seconds that all its processes compute; asleep they may be 4 times as long
    wall: float = 15.0  # seconds on the clock, whatever else the machine does
    memory: int = 1 << 30  # bytes of address space of each process
    output: int = 4 << 20  # bytes of any file, standard output included


@dataclass(frozen=True)
class Result:
    """The end of a program, and what it wrote."""

    stdout: str
    finished: bool  # by itself, without an error, in time
    in_time: bool
    seconds: float  # as Limits.cpu counts them


class Sandbox:
    """Runs tests and programs, `workers` at a time; see the package for what it contains.

    Threads may share it. Its processes end with it, or with the trainer.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or runs_at_a_time()
        self._places: queue.LifoQueue[int] = queue.LifoQueue()
        for place in range(self.workers):
            self._places.put(place)
        # The zygote has folders as descriptors, so that nothing in it tells what they are called.
        self._folders = [os.open(path, os.O_PATH) for path in (_LIBRARY, _packages())]
        # The Python of no virtual environment, which would tell its folder.
        self._zygote = Worker(
            _WHAT, self._command, _ENVIRONMENT, os.path.realpath(sys.executable), self._folders
        )
        self._asking = threading.Lock()

    def close(self) -> None:
        with self._asking:
            self._zygote.stop()
            while self._folders:
                os.close(self._folders.pop())

    def describe(self) -> str:
        """A line on what this machine lets it contain. Raises BarError where it can't start."""
        with self._asking:
            hello = self._zygote.start()
        user = "another user" if hello["privileged"] else "the same user"
        if hello["namespaces"]:
            return f"seccomp, limits, namespaces, a root folder of its own, {user}"
        return (
            f"seccomp, limits, no files at all, {user}; namespaces can't be had here "
            f"({hello['reason']})"
        )

    def run_tests(
        self,
        source: str | Sequence[str],
        tests: Sequence[str],
        remote: Sequence[str],
        before: str = "",
        setup: str = "",
        shared: str = "",
        limits: Limits = Limits(),
    ) -> list[bool]:
        """The outcome of each of the tests, in one process for all of them.

        `source` may be several texts: the first that is Python is run. `tests` are statements; the
        names in `remote` are those of the code under test. `before` runs ahead of fetching these,
        `setup` after it, both on the tests' side. `shared` (imports and classes) is what the tested
        code finds as well, of `setup` or `before`: objects of these classes may go to and fro.
        """
        code = {"shared": shared, "sources": _texts(source)}
        job = {
            "before": before,
            "remote": list(remote),
            "setup": setup,
            "tests": list(tests),
            "shared": shared,
        }
        with contextlib.ExitStack() as stack:
            files = [
                _file(stack, data)
                for data in (json.dumps(code).encode(), json.dumps(job).encode(), b"")
            ]
            self._run("tests", files, limits)
            marks = os.pread(files[-1], len(tests), 0)
        return [marks[i : i + 1] == b"1" for i in range(len(tests))]

    def run_program(
        self, source: str | Sequence[str], stdin: str, limits: Limits = Limits()
    ) -> Result:
        """The end of a program that has this standard input. `source`: as for `run_tests`."""
        code = {"sources": _texts(source)}
        with contextlib.ExitStack() as stack:
            files = [
                _file(stack, data)
                for data in (json.dumps(code).encode(), stdin.encode("utf-8", "replace"), b"")
            ]
            reply = self._run("program", files, limits)
            text = os.pread(files[-1], limits.output, 0).decode("utf-8", "replace")
        if reply is None:
            return Result(text, finished=False, in_time=False, seconds=limits.cpu)
        finished = reply["in_time"] and reply["codes"][-1] == 0
        return Result(text, finished, reply["in_time"], reply["seconds"])

    def _run(self, kind: str, files: Sequence[int], limits: Limits) -> dict[str, Any] | None:
        """What its supervisor reports, or None where that has come to an end itself."""
        place = self._places.get()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        job = {
            "kind": kind,
            "place": place,
            "cpu": limits.cpu,
            "wall": limits.wall,
            "memory": limits.memory,
            "output": limits.output,
        }
        try:
            with ours:
                with theirs, self._asking:
                    self._zygote.send(job, [theirs.fileno(), *files])
                ours.settimeout(limits.wall + _GRACE_SECONDS)
                report = ours.recv(MAX_MESSAGE)
                return json.loads(report) if report else None
        except TimeoutError:
            with self._asking:
                self._zygote.stop()
            return None
        finally:
            self._places.put(place)

    def _command(self, control: int) -> list[str]:
        library, packages = (f"/proc/self/fd/{folder}" for folder in self._folders)
        return [
            *_FLAGS,
            "-c",
            f"import sys; sys.path.append({library!r}); "
            "from megatron_bar.verifiers.sandbox import zygote; "
            f"zygote.main({control}, {library!r}, {packages!r})",
        ]


def runs_at_a_time() -> int:
    """The number of runs that a sandbox makes side by side, if it isn't told another."""
    return _RUNS_PER_CORE * cores()


@functools.cache
def shared_sandbox() -> Sandbox:
    """The one sandbox of this process, made when first asked for."""
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox


def _packages() -> str:
    """The folder of numpy, of which tested code is offered numpy alone."""
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None and numpy.origin is not None  # pyproject.toml asks for it
    return str(Path(numpy.origin).parents[1])


def _texts(source: str | Sequence[str]) -> list[str]:
    return [source] if isinstance(source, str) else list(source)


def _file(stack: contextlib.ExitStack, data: bytes) -> int:
    """A file in memory, without a name, that is closed with the stack."""
    descriptor = os.memfd_create("sandbox")
    stack.callback(os.close, descriptor)
    os.truncate(descriptor, len(data))
    os.pwrite(descriptor, data, 0)
    return descriptor
