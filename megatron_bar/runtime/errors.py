"""Errors for people."""

from __future__ import annotations

from collections.abc import Sequence


class BarError(Exception):
    """Something the user can put right. The message is one line: what, where, what to do.

    Several faults that were found together are a line each. The command line prints it without a
    traceback and exits with status 1.
    """


class MachineError(BarError):
    """An error of the machine, not of the item at hand: no reason to leave the item out."""


class VerifierFailed(BarError):
    """A verifier failed on one answer: it raised, took too long, or returned what is no score.

    The item may be sound, and other answers to it can be scored.
    """


def raise_all(faults: Sequence[str]) -> None:
    """Raise BarError with a line for each of `faults`, if there are any."""
    if faults:
        raise BarError("\n".join(faults))
