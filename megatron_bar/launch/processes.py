"""Start the ranks of one job on this machine, and make sure that they end together."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from megatron_bar.runtime.devices import VISIBLE_GPUS, check_ranks, visible_gpus
from megatron_bar.runtime.disk import explain_disk_faults
from megatron_bar.runtime.distributed import RENDEZVOUS_FILE
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.pool import die_with_parent, die_with_starter
from megatron_bar.runtime.stopping import (
    CONTINUE_LATER,
    ContinueLater,
    RaiseOnStopSignal,
    heard,
    start_tracker,
    unheard,
)

# Where there is no GPU, ranks are forked from a server that has imported the slow libraries once.
# Where there is one each rank is a new program: CUDA doesn't work in a process that was forked
# after CUDA was asked for anything, and importing Transformer Engine asks.
_forked = multiprocessing.get_context("forkserver")
_executed = multiprocessing.get_context("spawn")
_preloaded = ["megatron_bar.launch.preload"]
_forked.set_forkserver_preload(_preloaded)
POLL_SECONDS = 0.05
# How long ranks that stop to go on later may differ in the time they end.
PARTING_SECONDS = 60.0


class JobFailed(Exception):
    """Some rank did not end well. The message is what it said last."""


@dataclass
class Job:
    """The running ranks of one function call."""

    ranks: list[Any]
    errors: Any
    folder: tempfile.TemporaryDirectory
    deadline: float | None = None
    asked_to_stop: bool = False
    _parting: float | None = None

    def poll(self) -> bool:
        """True once all ranks have ended.

        Raises JobFailed as soon as one fails, and ContinueLater once they have stopped to go on
        later.
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.stop()
            raise JobFailed("did not end within its time limit")
        codes = [rank.exitcode for rank in self.ranks]
        if CONTINUE_LATER in codes:
            self._parting = self._parting or time.monotonic()
            if None in codes and time.monotonic() - self._parting < PARTING_SECONDS:
                return False
            self.stop()
            raise ContinueLater("its ranks were asked to stop")
        if any(codes):
            time.sleep(POLL_SECONDS)  # for the message to arrive
            message = self.errors.get() if not self.errors.empty() else None
            self.stop()
            failed = next(i for i, code in enumerate(codes) if code)
            raise JobFailed(message or f"rank {failed} ended with exit status {codes[failed]}")
        done = all(code == 0 for code in codes)
        if done:
            self.folder.cleanup()
        return done

    def wait(self) -> None:
        while not self.poll():
            time.sleep(POLL_SECONDS)

    def ask_to_stop(self, number: int) -> None:
        """Pass a stop signal on to every rank."""
        self.asked_to_stop = True
        for rank in self.ranks:
            if rank.is_alive():
                os.kill(rank.pid, number)

    def stop(self) -> None:
        """End every rank; the others would wait for a lost one until the collective times out.

        At once: what they write is whole under its name, or has none.
        """
        for rank in self.ranks:
            if rank.is_alive():
                rank.kill()
        for rank in self.ranks:
            rank.join()
        self.folder.cleanup()


def preload(module: str) -> None:
    """Have the server, if ranks come from one, import `module` too. Before the first `start`."""
    if module not in _preloaded:
        _preloaded.append(module)
        _forked.set_forkserver_preload(_preloaded)


def start(
    function: Callable[..., None],
    *args: Any,
    processes: int = 1,
    log: Path | None = None,
    threads: int = 1,
    timeout_seconds: float | None = None,
    gpus: Sequence[str] | None = None,
) -> Job:
    """Call `function(*args)` in `processes` ranks, with the environment torchrun would give them.

    What the ranks print goes to `log`, or to this process's output. Each computes in `threads`
    threads. Job.poll fails a job that takes longer than `timeout_seconds`. The ranks see `gpus`,
    named as `visible_gpus` names them, one a rank; None: all that this process sees. A script that
    calls this needs no `if __name__ == "__main__"`, unless the function is its own.

    Raises BarError if there are GPUs, and not enough of them.
    """
    # Ranks find in its cache what they need of the hub. Read by the server when it starts.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    on_gpus = bool(visible_gpus())
    if gpus is None and on_gpus:
        check_ranks(processes)
    start_tracker()
    context = _executed if on_gpus else _forked
    if not on_gpus:
        _start_server()
    folder = tempfile.TemporaryDirectory(prefix="megatron-bar-")
    errors = context.SimpleQueue()
    # Read where what it imports can be told to the log.
    call = pickle.dumps((function, args))
    ranks = []
    for rank in range(processes):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "OMP_NUM_THREADS": str(threads),
            RENDEZVOUS_FILE: os.path.join(folder.name, "rendezvous"),
        }
        if gpus is not None:
            environment[VISIBLE_GPUS] = ",".join(gpus)
        process = context.Process(
            target=_rank_main, args=(call, environment, log, errors), daemon=False
        )
        with unheard(), _environment(environment), _script_left_alone(function):
            process.start()
        ranks.append(process)
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    return Job(ranks, errors, folder, deadline)


@contextlib.contextmanager
def _script_left_alone(function: Callable[..., None]) -> Iterator[None]:
    """Have the rank that is started not import the script that runs now.

    It would run that anew, down to the line that starts ranks. A function of the script needs it.
    """
    script = vars(sys.modules["__main__"])
    if function.__module__ == "__main__":
        yield
        return
    names: list[str] = [name for name in ("__file__", "__spec__") if name in script]
    known = {name: script[name] for name in names}
    script.update(dict.fromkeys(names))
    try:
        yield
    finally:
        script.update(known)


def _start_server() -> None:
    """Start what forks the ranks, unless it runs; it hands down to them that it hears no signal."""
    with unheard():
        multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Add variables for the block: a new program has to have them before it imports anything."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _rank_main(call: bytes, environment: dict[str, str], log: Path | None, errors: Any) -> None:
    die_with_starter()
    os.register_at_fork(after_in_child=die_with_parent)  # such as workers of a pool
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    with contextlib.ExitStack() as stack:
        try:
            if log is not None:
                with explain_disk_faults(log):
                    output = stack.enter_context(open(log, "a", buffering=1))
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            function, args = pickle.loads(call)
            with RaiseOnStopSignal(), heard():
                function(*args)
        except BarError as error:
            errors.put(str(error))
            _end(1, f"error: {error}")
        except ContinueLater as asked:
            _end(CONTINUE_LATER, str(asked))
        except BaseException as error:
            errors.put(f"{type(error).__name__}: {error}")
            _end(2, traceback.format_exc())


def _end(status: int, last_words: str) -> NoReturn:
    with contextlib.suppress(OSError):  # the log may be on the disk that is full
        print(last_words, file=sys.stderr)
    sys.exit(status)
