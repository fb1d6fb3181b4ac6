"""The terminal and the log: progress bars on the one, plain lines in the other."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from megatron_bar.runtime.beats import beat, work
from megatron_bar.runtime.ranks import is_main

console = Console(highlight=False, soft_wrap=True)
LOG_EVERY_SECONDS = 10.0
NOTEBOOK_EVERY_SECONDS = 0.5
_LINE_WIDTH = 100  # that is written over
_WIDEST = 1000
_LINE = re.compile(
    r"^(?P<what>.+): (?P<done>\d+)/(?P<total>\d+), [\d.]+/s, (?P<left>\d+) s left", re.MULTILINE
)


def say(message: str) -> None:
    """Print one line, from one process of the run."""
    if is_main():
        console.print(message, markup=False)
        sys.stdout.flush()


def warn(message: str) -> None:
    """Print one line beside what a command prints, which another may read."""
    print(f"megatron-bar: {message}", file=sys.stderr)


def print_wide(*tables: Table) -> None:
    """Print tables one below the other, at the width they need, however narrow the terminal."""
    wide = Console(highlight=False, width=_WIDEST)
    for table in tables:
        wide.print(table)
        wide.print()


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Show progress over `total` units; yields `advance(units=1, note="")`.

    A terminal gets a bar with rate and time left; a notebook a line that changes in its place; a
    log a line every ten seconds. Each call of `advance`, on every rank, is a sign that the rank
    doesn't hang, and where they all do the same, of how far it is.
    """
    with work(what), _shown(what, total) if is_main() else _unseen() as advance:
        yield advance


@contextlib.contextmanager
def _unseen() -> Iterator[Callable[..., None]]:
    yield lambda units=1, note="": beat(units)


@contextlib.contextmanager
def _shown(what: str, total: int) -> Iterator[Callable[..., None]]:
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, note="", rate="")

            def advance(units: int = 1, note: str = "") -> None:
                beat(units)
                speed = bar.tasks[0].speed
                rate = f"{speed:.1f}/s" if speed else ""
                bar.update(task, advance=units, note=note, rate=rate)

            yield advance
        return
    start = last = time.monotonic()
    done, in_place = 0, console.is_jupyter
    every = NOTEBOOK_EVERY_SECONDS if in_place else LOG_EVERY_SECONDS

    def log(units: int = 1, note: str = "") -> None:
        nonlocal done, last
        beat(units)
        done += units
        now = time.monotonic()
        if done and now - last >= every:  # before that there is no rate
            last = now
            rate = done / (now - start)
            line = (
                f"{what}: {done}/{total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left {note}"
            )
            if in_place:
                print(f"\r{line:<{_LINE_WIDTH}}", end="", flush=True)
            else:
                say(line)

    yield log
    if in_place and last > start:
        print(f"\r{'':<{_LINE_WIDTH}}\r", end="", flush=True)


@dataclass(frozen=True)
class LoggedProgress:
    """The last line of progress in a log."""

    what: str
    done: int
    total: int
    seconds_left: float


def read_progress(log: str) -> LoggedProgress | None:
    """The last line in `log` that `progress` wrote, or None."""
    lines = list(_LINE.finditer(log))
    if not lines:
        return None
    last = lines[-1]
    return LoggedProgress(last["what"], int(last["done"]), int(last["total"]), float(last["left"]))
