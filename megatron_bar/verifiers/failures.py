"""Answers on which a verifier or an environment failed.

They earn nothing, the first are told, all are counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from megatron_bar.runtime.console import warn
from megatron_bar.runtime.errors import VerifierFailed

_TOLD = 5  # by a process


class Failures:
    """Failures of verifiers in this process. Threads may share it."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def score(self, verify: Callable[[str], float], response: str) -> float:
        """The score by `verify` of the response, or 0 where that fails on it."""
        try:
            return verify(response)
        except VerifierFailed as error:
            self.add(error)
            return 0.0

    def add(self, error: VerifierFailed) -> None:
        """Count an answer that earns nothing, and tell of it if it is one of the first."""
        with self._lock:
            self.count += 1
            number = self.count
        if number <= _TOLD:
            warn(f"{error}; this answer earns nothing")
        if number == _TOLD:
            warn("further answers on which a verifier fails are only counted, as verifier_failures")
