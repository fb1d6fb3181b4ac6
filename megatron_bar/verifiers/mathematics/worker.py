"""The process that compares answers where algebra is needed, each in a fork that can be killed.

sympy can be made to run, or to grow, without end, inside C code where no signal or thread stops
it, but a process can be killed.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import select
import signal
import socket
import sys

from megatron_bar.verifiers.mathematics.algebra import SympyAlgebra
from megatron_bar.verifiers.mathematics.compare import same
from megatron_bar.verifiers.mathematics.forms import read
from megatron_bar.verifiers.workers import serve

_MEMORY = 4 << 30  # bytes of address space
_EQUAL, _DIFFERENT = 0, 1
# Read once, so that forks find the parser's tables filled for what most formulas are made of.
_USUAL = (
    (r"\frac{\sqrt{2}}{2}", "0.5"),
    (r"x^{2}-3y_1+\frac{1}{n}", "(x+1)(y-2)"),
    (r"2\pi r\cdot\sin x", r"\sqrt[3]{2}e^{-x}"),
    (r"\log_2 8+5!-|x|", "2^{10}-3ab"),
)


def main(control: int) -> None:
    """Answer the requests `[given, expected, processor seconds, seconds]` of a socket."""
    logging.disable(logging.CRITICAL)  # math-verify logs a traceback for each odd expression
    for one, other in _USUAL:
        _equal(one, other)
    gc.freeze()  # so that forks copy no page for it
    with socket.socket(fileno=control) as trainer:
        serve(trainer, {}, lambda request, _: {"equal": _compare(*request)})


def _compare(given: str, expected: str, processor_seconds: int, seconds: float) -> bool:
    pid = os.fork()
    if pid == 0:
        code = _DIFFERENT
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds))
            code = _EQUAL if _equal(given, expected) else _DIFFERENT
        os._exit(code)
    ended = os.pidfd_open(pid)
    select.select([ended], [], [], seconds)
    os.close(ended)
    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == _EQUAL


def _equal(given: str, expected: str) -> bool:
    return same(read(given), read(expected), SympyAlgebra())


if __name__ == "__main__":
    main(int(sys.argv[1]))
