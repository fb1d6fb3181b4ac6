"""The process that forks the processes of each run, and ends them.

It has imported what tests need, so that a fork takes milliseconds, and it never reads what it runs:
sources, tests and results travel through file descriptors that it hands on unopened. So nothing of
one run can be found in the memory of the next, and there is nothing in it worth finding.

Each run has a supervisor of its own, a fork that watches its time, so that runs that hang stand
beside the others and not before them.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import site
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_bar.verifiers.sandbox import checker, containment, program, solution
from megatron_bar.verifiers.workers import MAX_MESSAGE

_ABOVE = 100  # more than a run's descriptors are numbered
_PACKAGES = """
    numpy numpy.linalg numpy.fft numpy.random numpy.polynomial numpy.ma numpy.testing numpy.char
    numpy.strings numpy.rec numpy.typing numpy.dtypes numpy.exceptions numpy.lib.stride_tricks
""".split()
# What tested code is likely to import. Where it can open no file it has these and no others.
_STANDARD = """
    abc array ast asyncio base64 bisect calendar cmath collections copy csv dataclasses datetime
    decimal difflib enum fractions functools hashlib heapq inspect io itertools json keyword locale
    math numbers operator pickle pprint queue random re secrets statistics string struct sys
    textwrap threading time timeit traceback types typing unicodedata uuid zlib concurrent.futures
    encodings.idna urllib.parse html.parser xml.etree.ElementTree bz2 lzma glob tempfile shutil
    ipaddress colorsys zoneinfo sqlite3 graphlib unittest doctest logging argparse
""".split()
_Program = tuple[Callable[..., None], list[int]]  # what a process runs, and its descriptors
_TICK_SECONDS = 0.05
# A run is asleep if it didn't compute for so long, but for what is too short to be work: in a
# shorter time it may have waited for a core that others have.
_NAP_SECONDS, _NO_WORK_SECONDS = 0.25, 0.0001
_SLEEP_COUNTS = 0.25  # of a second's computing, for the same reason, and as it takes no core


def main(control: int, library: str, packages: str) -> None:
    """Serve runs from the socket `control` until its other end closes.

    `library` holds our code and `packages` what is offered of other people's; no tested code sees
    these folders, or what they are called.
    """
    preload(packages)
    sys.path.remove(library)
    with contextlib.suppress(OSError):  # rather one of ours than the trainer, if memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")
    cell = containment.enter_cell(os.getpid())
    os.environ.clear()
    gc.collect()
    gc.freeze()  # so that collections in the children leave the shared pages alone
    with socket.socket(fileno=control) as trainer:
        hello = {
            "namespaces": cell.namespaces,
            "privileged": cell.privileged,
            "reason": cell.reason,
        }
        trainer.sendall(json.dumps(hello).encode())
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 2)  # no one reads it from here on, so it would fill up and block
        _serve(trainer, cell)


def preload(packages: str) -> None:
    """Import what tested code may want, of others' packages from the folder `packages`."""
    sys.path.append(packages)
    for name in _PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.path.remove(packages)
    for name in _STANDARD:
        with contextlib.suppress(ImportError):  # a part that this Python was built without
            importlib.import_module(name)
    site.setquit()  # exit and quit, which every Python that a user starts has


def _serve(trainer: socket.socket, cell: containment.Cell) -> None:
    """Fork a supervisor for each run that is asked for. The first descriptor is for its report."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none of them is waited for
    while True:
        message, descriptors, _, _ = socket.recv_fds(trainer, MAX_MESSAGE, 16)
        if not message:
            return
        # Without a fork nobody holds the other end of the report, which the trainer will notice.
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                _supervise(trainer, cell, json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(
    trainer: socket.socket, cell: containment.Cell, job: dict[str, Any], descriptors: list[int]
) -> NoReturn:
    try:
        trainer.close()
        containment.die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with socket.socket(fileno=descriptors[0]) as report:
            report.sendall(json.dumps(_run(report, cell, job, descriptors[1:])).encode())
    finally:
        os._exit(0)


def _run(
    report: socket.socket, cell: containment.Cell, job: dict[str, Any], files: list[int]
) -> dict[str, Any]:
    """Run a job's processes until the last of them ends, or the time is up; none is left after."""
    cell.own_scratch()
    if job["kind"] == "program":
        ends: tuple[socket.socket, ...] = ()
        programs: list[_Program] = [(program.main, files)]
    else:
        source, checks, verdict = files
        # No one else holds an end of it, so that each side notices when the other one has died.
        ends = socket.socketpair()
        programs = [
            (solution.main, [source, ends[0].fileno()]),
            (checker.main, [checks, ends[1].fileno(), verdict]),
        ]
    processes = []
    for number, (function, own) in enumerate(programs):
        pid = cell.fork()
        if pid == 0:
            _child(cell, 2 * job["place"] + number, function, own, job)
        processes.append(pid)
    for end in ends:
        end.close()
    in_time, seconds = _watch(processes, report, job)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    return {"in_time": in_time, "seconds": seconds, "codes": codes}


def _watch(
    processes: Sequence[int], report: socket.socket, job: dict[str, Any]
) -> tuple[bool, float]:
    """Whether the last process ended by itself in time, and the seconds that the run took.

    Counted are the seconds that its processes computed, and a part of those that they were asleep.
    What they wait for a core isn't theirs, so that a reward doesn't hang on what else the machine
    does; up to the limit `wall`, which nothing outlasts.
    """
    started = nap_began = time.monotonic()
    computed = computed_before_nap = asleep = 0.0
    last = os.pidfd_open(processes[-1])
    poll = select.poll()
    poll.register(last, select.POLLIN)
    poll.register(report, select.POLLRDHUP)
    while True:
        ready = poll.poll(1000 * _TICK_SECONDS)
        now = time.monotonic()
        computed = sum(map(_seconds_computed, processes))
        if now - nap_began >= _NAP_SECONDS:
            if computed - computed_before_nap < _NO_WORK_SECONDS:
                asleep += _SLEEP_COUNTS * (now - nap_began)
            nap_began, computed_before_nap = now, computed
        if ready or computed + asleep >= job["cpu"] or now - started >= job["wall"]:
            return any(descriptor == last for descriptor, _ in ready), computed + asleep


def _seconds_computed(pid: int) -> float:
    """The processor time of a process, all its threads together."""
    clock = ~pid << 3 | 2  # as clock_getcpuclockid makes it
    try:
        return time.clock_gettime(clock)
    except OSError:  # it has ended
        return 0.0


def _child(
    cell: containment.Cell,
    place: int,
    function: Callable[..., None],
    descriptors: Sequence[int],
    job: dict[str, Any],
) -> NoReturn:
    """Become a run's process: nothing open but its own descriptors, everything else confined."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        # First out of the way of the numbers that they are to have.
        wanted = [
            fcntl.fcntl(number, fcntl.F_DUPFD, _ABOVE)
            for number in (nothing, nothing, nothing, *descriptors)
        ]
        for number, descriptor in enumerate(wanted):
            os.dup2(descriptor, number)
        os.closerange(len(wanted), 4096)
        cell.confine(place, job["memory"], job["cpu"], job["output"])
        function(*range(3, len(wanted)))
        code = 0
    finally:
        os._exit(code)
