"""A verifier of the user's own, FILE.py:FUNCTION, in processes that can be killed.

The function is called as those of the project are, `score(prompt, response, reference)`, and may do
what it likes: end its process, hang, fill the memory of it. It has SECONDS for an answer, or what
its file says under that name. The processes start when they are needed, as many as there are
threads that ask at once, and load the file once each (own_worker.py).
"""

from __future__ import annotations

import atexit
import functools
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_bar.recipe.paths import function_in
from megatron_bar.runtime.errors import BarError, MachineError, VerifierFailed
from megatron_bar.verifiers.workers import Worker, WorkerPool

SECONDS = 15.0  # for an answer, unless the file says otherwise
_MOST = 256  # processes; one that no thread asks isn't started


def short_name(named: str) -> str | None:
    """The name in logs of FILE.py:FUNCTION, without folders; None for a name of another form."""
    found = function_in(named)
    return found and f"{Path(found[0]).name}:{found[1]}"


def is_absent(named: str) -> bool:
    """Whether this names a file that isn't on this machine."""
    found = function_in(named)
    return found is not None and not Path(found[0]).is_file()


@functools.cache
def load(named: str) -> Callable[[str, str, Any], float]:
    """The function that FILE.py:FUNCTION names, ready to be called from any thread.

    Raises BarError if there is no such file or function, if the file can't be loaded, and if the
    function doesn't take three arguments. What is returned raises BarError as the function does,
    and VerifierFailed if that raises anything else, takes too long or returns no score.
    """
    path, name = function_in(named)
    if not name.isidentifier():
        raise BarError(f"verifier {named} names no function; write it as {path}:FUNCTION")
    if not Path(path).is_file():
        raise BarError(f"verifier {named}: {path} is not a file")

    def command(control: int) -> list[str]:
        return ["-m", "megatron_bar.verifiers.own_worker", str(control), path, name, str(SECONDS)]

    pool = WorkerPool(lambda: Worker(f"verifier {named}", command), _MOST)
    with pool.worker() as worker:
        _start(worker)
    atexit.register(pool.close)
    return functools.partial(_score, pool)


def _start(worker: Worker) -> float:
    """The seconds that it has for an answer, once it is there. Raises BarError if it can't be."""
    hello = worker.start()
    if fault := hello.get("fault"):
        worker.stop()
        raise BarError(fault)
    return hello["seconds"]


def _score(pool: WorkerPool, prompt: str, response: str, reference: Any) -> float:
    with pool.worker() as worker, tempfile.TemporaryFile() as question:
        try:
            seconds = _start(worker)
        except (BarError, MachineError) as error:  # it could be started before
            raise VerifierFailed(str(error)) from None
        # In a file, as a message to a worker has a longest length.
        pickle.dump((prompt, response, reference), question)
        question.seek(0)
        asked = time.monotonic()
        reply = worker.ask({}, seconds, [question.fileno()])
        waited = time.monotonic() - asked
    match reply:
        case {"score": score}:
            return score
        case {"broken": reason}:
            raise BarError(reason)
        case {"failed": reason}:
            raise VerifierFailed(reason)
    raise VerifierFailed(f"no score within {seconds:g} s" if waited >= seconds
                         else "its process ended without a score")
