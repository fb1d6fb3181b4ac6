"""Functions of the user's own, FILE.py:FUNCTION, in processes that can be killed.

A verifier is called as those of the project are, `score(prompt, response, reference)`; an
environment as `step(messages, reference)`. A function may do what it likes: end its process, hang,
fill the memory of it. It has SECONDS for an answer, or what its file says under that name. The
processes start when they are needed, as many as there are threads that ask at once, and load the
file once each (own_worker.py).
"""

from __future__ import annotations

import atexit
import functools
import json
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_bar.recipe.paths import function_in
from megatron_bar.runtime.errors import BarError, MachineError, VerifierFailed
from megatron_bar.verifiers.own_kinds import VERIFIER, Kind
from megatron_bar.verifiers.workers import Worker, WorkerPool

SECONDS = 15.0  # for an answer, unless the file says otherwise
_MOST = 256  # processes; one that no thread asks isn't started


def short_name(named: str | None) -> str | None:
    """The name in logs of FILE.py:FUNCTION, without folders; None for a name of another form."""
    found = function_in(named or "")
    return found and f"{Path(found[0]).name}:{found[1]}"


def is_absent(named: str | None) -> bool:
    """Whether this names a file that isn't on this machine."""
    found = function_in(named or "")
    return found is not None and not Path(found[0]).is_file()


@functools.cache
def load(named: str, kind: Kind = VERIFIER) -> Callable[..., Any]:
    """The function that FILE.py:FUNCTION names, ready to be called from any thread.

    Raises BarError if it names none, if there is no such file or function, if the file can't be
    loaded, and if the function doesn't take the arguments of its kind. What is returned raises
    BarError as the function does, and VerifierFailed if that raises anything else, takes too long
    or returns something else than its kind does.
    """
    if (found := function_in(named)) is None:
        raise BarError(f"{kind.name} {named!r} is no file; write it as FILE.py:FUNCTION")
    path, name = found
    if not name.isidentifier():
        raise BarError(f"{kind.name} {named} names no function; write it as {path}:FUNCTION")
    if not Path(path).is_file():
        raise BarError(f"{kind.name} {named}: {path} is not a file")

    def command(control: int) -> list[str]:
        return [
            "-m",
            "megatron_bar.verifiers.own_worker",
            str(control),
            kind.name,
            path,
            name,
            str(SECONDS),
        ]

    pool = WorkerPool(lambda: Worker(f"{kind.name} {named}", command), _MOST)
    with pool.worker() as worker:
        _start(worker)
    atexit.register(pool.close)
    return functools.partial(_call, pool, kind)


def _start(worker: Worker) -> float:
    """The seconds that it has for an answer, once it is there. Raises BarError if it can't be."""
    hello = worker.start()
    if fault := hello.get("fault"):
        worker.stop()
        raise BarError(fault)
    return hello["seconds"]


def _call(pool: WorkerPool, kind: Kind, *arguments: Any) -> Any:
    with pool.worker() as worker, tempfile.TemporaryFile() as paper:
        try:
            seconds = _start(worker)
        except (BarError, MachineError) as error:  # it could be started before
            raise VerifierFailed(str(error)) from None
        # Question and answer are in a file, as a message to a worker has a longest length.
        pickle.dump(arguments, paper)
        paper.seek(0)
        asked = time.monotonic()
        answered = worker.ask({}, seconds, [paper.fileno()]) is not None
        waited = time.monotonic() - asked
        paper.seek(0)
        reply = json.load(paper) if answered else {}
    match reply:
        case {"value": value}:
            return value
        case {"broken": reason}:
            raise BarError(reason)
        case {"failed": reason}:
            raise VerifierFailed(reason)
    raise VerifierFailed(
        f"no {kind.gives} within {seconds:g} s"
        if waited >= seconds
        else f"its process ended without a {kind.gives}"
    )
