"""Backends, which take the steps of an RLVR stage: each a module or folder here, named in BACKENDS.

All take the same steps, to the bit (tests/rlvr/test_backends.py), so a stage that one was stopped
in another one goes on with.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Protocol, cast

from megatron_bar.runtime.console import warn

if TYPE_CHECKING:
    from megatron_bar.rlvr.learner import Learner

# The first one that is installed is the default.
BACKENDS = ("nemo_aligner", "native")


class Backend(Protocol):
    """The interface of a backend's module."""

    # A module to import in the server that ranks are forked from, as it takes long; or None.
    PRELOAD: str | None

    def missing(self) -> str | None:
        """Say what is to be installed first, or None where it can run. Imports nothing."""

    def prepare(self) -> None:
        """Import what has to come before the groups of processes.

        Raises BarError where it can't.
        """

    def fit(self, learner: Learner) -> None:
        """Take the steps that remain, in each one what `learner` offers, in its loop's order.

        Ends early when `learner.end_step` says so. Every rank calls this.
        """


def backend_name(asked: str | None) -> str:
    """The backend that a recipe asks for, by default the first that is installed."""
    return asked or next(name for name in BACKENDS if _module(name).missing() is None)


def backend_of(asked: str | None) -> Backend:
    """The backend of that name, or the default, as `backend_name` has it."""
    return _module(backend_name(asked))


def missing_backend(asked: str | None) -> str | None:
    """Say what is to be installed for the backend that a recipe asks for, or None.

    Where it asks for none and another than the first takes its place, a warning says so, once.
    """
    if asked is not None:
        return _module(asked).missing() if asked in BACKENDS else None  # unknown: a wrong setting
    if missing := _module(BACKENDS[0]).missing():
        warn_once(f"{missing}; the {backend_name(None)} backend takes RLVR's steps, the same ones")
    return None


warn_once = functools.cache(warn)


def _module(name: str) -> Backend:
    return cast(Backend, importlib.import_module(f"{__name__}.{name}"))
