"""The command line: `megatron-bar`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from megatron_bar.cli.commands import COMMANDS
from megatron_bar.cli.parser import COUNTS, build_parser
from megatron_bar.runtime.disk import disk_fault
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.stopping import CONTINUE_LATER, ContinueLater

_BROKEN_PIPE = 128 + signal.SIGPIPE  # what a shell says of a program that the signal has ended
# Commands that may fetch a model, data or lm-eval's tasks, before any rank or job starts.
_DOWNLOADING = (
    "data",
    "run",
    "rehearse",
    "verify-data",
    "submit",
    "import",
    "evaluate",
    "verify",
    "chat",
    "serve",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    0 done, 1 a fault the user can mend, 2 bad usage, 3 a plan that doesn't fit its GPUs, 75
    (CONTINUE_LATER) asked to stop before the work was done: the same command goes on.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes positional arguments in one piece only; overrides may stand anywhere.
    if "overrides" in args and not any(word.startswith("-") for word in rest):
        args.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Hub look-ups for local folders only cost time, and fail on nodes without a network.
    if not _may_download(args):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        _check_counts(args)
        status = COMMANDS[args.command](args)
        sys.stdout.flush()
        return status or 0
    except BarError as error:
        for line in str(error).splitlines():  # of several faults, each
            print(f"megatron-bar: {line}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who reads what we print has seen enough, as head has
        # What is still to be written at the interpreter's end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        where = error.filename or "a file"
        print(
            f"megatron-bar: {where} can't be written: its disk {fault}; make room and run it again",
            file=sys.stderr,
        )
        return 1
    except ContinueLater as asked:
        print(f"megatron-bar: {asked}; run it again to go on", file=sys.stderr)
        return CONTINUE_LATER
    except KeyboardInterrupt:
        print("megatron-bar: interrupted; run it again to go on", file=sys.stderr)
        return 130


def _check_counts(args: argparse.Namespace) -> None:
    for name in COUNTS:
        given = getattr(args, name, None)
        if given is not None and given < 1:
            raise BarError(f"--{name.replace('_', '-')} {given}: give at least 1")


def _may_download(args: argparse.Namespace) -> bool:
    for_show = getattr(args, "dry_run", False) or getattr(args, "write", False)
    return args.command in _DOWNLOADING and not for_show
