"""Being asked to stop, by a signal, by a file or by the clock, and to go on later.

A scheduler that takes a machine away says so beforehand: SIGTERM, SIGUSR1, or a time that is known
from the start; a person presses Ctrl-C (SIGINT). A stage that trains then saves at its next step
and ends with `CONTINUE_LATER`; started again in the same way it goes on to the same bits.

A signal may come to one process or to all of them: a terminal, systemd and some batch systems
signal whole process groups. So all that helps a rank is started `unheard`, and goes on until the
rank ends it.
"""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, NoneType, TracebackType
from typing import Self

from megatron_bar.runtime.ranks import is_main
from megatron_bar.runtime.stop_file import STOP_FILE, run_of, stop_file_in

# EX_TEMPFAIL of sysexits.h. The exit status of `megatron-bar stage` and `megatron-bar run` (and of
# each rank) when they were asked to stop before the work was done: start them again, unchanged.
CONTINUE_LATER = 75
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Says that a stop file was found, among the numbers of signals, which are less.
_BY_FILE = 1 << 16
# When to save and stop, in seconds since 1970; what a batch system knows of a job's end.
STOP_AT = "MEGATRON_BAR_STOP_AT"
_LOOK_SECONDS = 1.0  # between two looks whether a rank was asked, within a step
_ASKED = "megatron_bar/asked_to_stop"  # a key of the store that the ranks met in


class ContinueLater(BaseException):
    """Asked to stop before the work was done. The process ends with status CONTINUE_LATER.

    No Exception, as KeyboardInterrupt is none: a signal may raise it anywhere, and who catches
    whatever a template, a library or damaged bytes may fail with must not catch it.
    """


class CutShort(Exception):
    """Work within a step is given up, since the stage was asked to stop. See `asked_to_stop`."""


def asked_to_stop() -> bool:
    """Whether a rank of the stage was asked to stop at once, as far as this one knows.

    For work within a step that may take longer than notice is given. Ranks don't wait for each
    other here: they learn of it within a second or so. False where no StopAtStep is at work.
    """
    return bool(_at_work) and _at_work[-1].is_urgent()


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Have stop signals wait. A process that is started in the block never hears them at all."""
    yield from _masked(signal.SIG_BLOCK)


def start_tracker() -> None:
    """Start multiprocessing's tracker of resources, `unheard`, unless it runs.

    Where it starts it has signals heard again, so it must stand before others are started.
    """
    with unheard():
        multiprocessing.resource_tracker.ensure_running()


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Hear stop signals in a process that was started `unheard`, those that wait too."""
    yield from _masked(signal.SIG_UNBLOCK)


def _masked(how: int) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(how, STOP_SIGNALS)  # raises what the signals that waited do
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignals:
    """A block in which a stop signal is noted in `received` instead of ending the process.

    A SIGINT after another signal does end it, with KeyboardInterrupt: who presses Ctrl-C twice
    doesn't want to wait. Not in a rank, which may be given one signal several times.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None and "RANK" not in os.environ:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> Self:
        # A shell has its background jobs ignore SIGINT; a job script its own signals, for itself.
        numbers = [
            number
            for number in STOP_SIGNALS
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
        ]
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class RaiseOnStopSignal(StopSignals):
    """A block in which the first stop signal raises ContinueLater, wherever the process is.

    What else leaves the block after that came of it (a process group that can't be closed since
    other ranks have gone, an error that torch makes of what it caught), and is ContinueLater too.
    """

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        super()._handle(number, frame)
        if is_first:
            raise self._asked()

    def _asked(self) -> ContinueLater:
        assert self.received is not None
        return ContinueLater(f"stopped by {signal.Signals(self.received).name}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        came_of_it = not isinstance(error, (ContinueLater, KeyboardInterrupt, NoneType))
        if self.received is not None and came_of_it:
            raise self._asked() from error


class StopAtStep(StopSignals):
    """Notes stop signals, a stop file and the clock, for a loop that stops between steps.

    A signal, the file and the job's end are urgent: whoever works within a step for long looks for
    them (`asked_to_stop`). Minutes of the recipe aren't, since nobody takes the machine away.

    Within RaiseOnStopSignal it takes its place, so set-up and saves in the block aren't cut short.
    A signal after the last step finds nothing left to stop, and is forgotten.
    The file lies in the stage's `folder`, or in that of its run. `minutes` counts from here. The
    environment's MEGATRON_BAR_STOP_AT holds too.
    """

    def __init__(self, folder: Path, minutes: float | None = None) -> None:
        super().__init__()
        run = run_of(folder)
        self.folders = [folder] if run is None else [folder, run]
        self.minutes_end = float("inf") if minutes is None else time.time() + 60 * minutes
        self.job_end = float(os.environ.get(STOP_AT, "inf"))
        self._by_file = self._urgent = False
        self._next_look = 0.0

    def __enter__(self) -> StopAtStep:
        super().__enter__()
        _at_work.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _at_work.remove(self)
        super().__exit__(kind, error, trace)

    def _own_reason(self, urgent: bool) -> int:
        """This rank's: _BY_FILE, a signal's number, -1 for the clock, 0 for none."""
        # One rank alone looks for the file, which may be gone when the others hear of it.
        self._by_file = self._by_file or (is_main() and stop_file_in(*self.folders) is not None)
        end = self.job_end if urgent else min(self.job_end, self.minutes_end)
        return (self._by_file and _BY_FILE) or self.received or (-1 if time.time() >= end else 0)

    def is_urgent(self) -> bool:
        """See `asked_to_stop`."""
        import torch.distributed as dist

        if self._urgent or time.monotonic() < self._next_look:
            return self._urgent
        self._next_look = time.monotonic() + _LOOK_SECONDS
        store = dist.distributed_c10d._get_default_store()
        if self._own_reason(urgent=True):
            store.set(_ASKED, "")
        self._urgent = store.check([_ASKED])
        return self._urgent

    def reason_on_any_rank(self, urgent: bool = False) -> str | None:
        """The reason to stop now, of any rank, or None. All ranks call it.

        Minutes of the recipe are none where it is to be `urgent`.
        """
        import torch  # not for the helpers that import this, such as the sandbox
        import torch.distributed as dist

        mine = self._own_reason(urgent)
        worst = torch.tensor([mine, -mine], device=torch.cuda.current_device())
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        number, clock = worst.tolist()
        if number == _BY_FILE:
            return f"asked by the file {STOP_FILE}, which run and submit remove"
        if number > 0:
            return f"asked by {signal.Signals(number).name}"
        return "its time is up" if clock > 0 else None


_at_work: list[StopAtStep] = []  # those whose blocks this process is in
