"""The process that compares answers with math-verify, each in a fork that can be killed."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from megatron_bar.verifiers.workers import serve

_MEMORY = 4 << 30  # bytes of address space
_EQUAL, _DIFFERENT = 0, 1


def main(control: int) -> None:
    logging.disable(logging.CRITICAL)  # math-verify logs a traceback for each odd expression
    _same("$\\frac{1}{2}$", "0.5")  # builds the tables of its grammar, for all forks
    with socket.socket(fileno=control) as trainer:
        serve(trainer, {}, lambda request, _: {"equal": _compare(*request)})


def _compare(given: str, expected: str, seconds: float) -> bool:
    pid = os.fork()
    if pid == 0:
        code = _DIFFERENT
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = _EQUAL if _same(given, expected) else _DIFFERENT
        os._exit(code)
    ended = os.pidfd_open(pid)
    select.select([ended], [], [], seconds)
    os.close(ended)
    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == _EQUAL


def _same(given: str, expected: str) -> bool:
    """math-verify's own time limits work in a main thread only; the fork's limit stands for them.
    """
    gold, answer = _parsed(expected), _parsed(given)
    return bool(verify(gold, answer, timeout_seconds=None))


def _parsed(text: str) -> list[Any]:
    framed = text if text.startswith("$") else f"${text}$"
    return parse(framed, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
