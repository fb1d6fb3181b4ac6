"""What the user sees: progress bars on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from megatron_bar.runtime.distributed import is_main

console = Console(highlight=False, soft_wrap=True)
LOG_EVERY_SECONDS = 10.0


def say(message: str) -> None:
    """Print one line, from one process of the run."""
    if is_main():
        console.print(message, markup=False)
        sys.stdout.flush()


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Show progress over `total` units; yields `advance(units=1, note="")`.

    A terminal gets a bar with rate and time left; a log gets a line every ten seconds.
    """
    if not is_main():
        yield lambda units=1, note="": None
        return
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                   TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, note="", rate="")

            def advance(units: int = 1, note: str = "") -> None:
                speed = bar.tasks[0].speed
                rate = f"{speed:.1f}/s" if speed else ""
                bar.update(task, advance=units, note=note, rate=rate)

            yield advance
        return
    start = last = time.monotonic()
    done = 0

    def log(units: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS:
            last = now
            rate = done / (now - start)
            say(f"{what}: {done}/{total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left {note}")

    yield log
