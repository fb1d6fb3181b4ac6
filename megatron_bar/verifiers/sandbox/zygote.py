"""The process that forks one process a test, and ends it.

It has imported what tests need, so that a fork takes milliseconds, and it never reads what it runs:
sources, tests and results travel through file descriptors that it hands on unopened. So nothing of
one test can be found in the memory of the next, and there is nothing in it worth finding.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from megatron_bar.verifiers.sandbox import checker, containment, program, solution
from megatron_bar.verifiers.workers import serve

_ABOVE = 100  # more than a test's descriptors are numbered
# What tested code is likely to import. Where it can open no file it has these and no others.
_PRELOADED = """
    abc array ast asyncio base64 bisect calendar cmath collections copy csv dataclasses datetime
    decimal difflib enum fractions functools hashlib heapq inspect io itertools json keyword locale
    math numbers operator pickle pprint queue random re secrets statistics string struct sys
    textwrap threading time timeit traceback types typing unicodedata uuid zlib concurrent.futures
    encodings.idna urllib.parse html.parser xml.etree.ElementTree bz2 lzma glob tempfile shutil
    ipaddress colorsys zoneinfo sqlite3 graphlib unittest doctest logging argparse
""".split()
_PROGRAMS = {"checker": checker.main, "solution": solution.main, "program": program.main}


def main(control: int, library: str) -> None:
    """Serve jobs from the socket `control` until its other end closes. `library` holds our code."""
    preload()
    sys.path.remove(library)
    cell = containment.enter_cell(os.getpid())
    os.environ.clear()
    gc.collect()
    gc.freeze()  # so that collections in the children leave the shared pages alone
    with socket.socket(fileno=control) as trainer:
        hello = {"namespaces": cell.namespaces, "privileged": cell.privileged,
                 "reason": cell.reason}
        serve(trainer, hello, functools.partial(_run, trainer, cell))


def preload() -> None:
    """Import what tested code may want."""
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # an optional part that this Python was built without


def _run(
    trainer: socket.socket, cell: containment.Cell, job: dict[str, Any], descriptors: list[int]
) -> dict[str, Any]:
    """Run a job's processes until the last of them ends, or the time is up; none is left after."""
    started = time.monotonic()
    cell.fresh_scratch()
    processes = []
    remaining = list(descriptors)
    for place, (name, count) in enumerate(job["processes"]):
        own, remaining = remaining[:count], remaining[count:]
        pid = cell.fork()
        if pid == 0:
            _child(cell, place, name, own, job)
        processes.append(pid)
    for descriptor in descriptors:
        os.close(descriptor)
    in_time = _wait(processes[-1], trainer, started + job["wall"])
    for pid in processes:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    return {"in_time": in_time, "codes": codes, "seconds": time.monotonic() - started}


def _wait(pid: int, trainer: socket.socket, deadline: float) -> bool:
    """Whether the process ended by itself before the deadline, a time.monotonic() value."""
    watched = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.register(trainer, select.POLLRDHUP)
        ready = poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
        return any(descriptor == watched for descriptor, _ in ready)
    finally:
        os.close(watched)


def _child(
    cell: containment.Cell, place: int, name: str, descriptors: list[int], job: dict[str, Any]
) -> NoReturn:
    """Become a test's process: nothing open but its own descriptors, everything else confined."""
    code = 1
    try:
        nothing = os.open("/dev/null", os.O_RDWR)
        # First out of the way of the numbers that they are to have.
        wanted = [fcntl.fcntl(number, fcntl.F_DUPFD, _ABOVE)
                  for number in (nothing, nothing, nothing, *descriptors)]
        for number, descriptor in enumerate(wanted):
            os.dup2(descriptor, number)
        os.closerange(len(wanted), 4096)
        cell.confine(place, job["memory"], job["cpu"], job["output"])
        _PROGRAMS[name](*range(3, len(wanted)))
        code = 0
    finally:
        os._exit(code)
