"""A process that loads a user's file and calls a function of it; own.py is the trainer's side."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_bar.runtime.errors import BarError, VerifierFailed
from megatron_bar.verifiers.own_kinds import KINDS, Kind
from megatron_bar.verifiers.workers import serve

_LIMIT = "SECONDS"  # the name in the file of how long an answer may take
_GRACE_SECONDS = 2
_LONGEST = 1000  # characters of a reason

Function = Callable[..., Any]


def main(control: int, kind: Kind, path: str, name: str, usual_seconds: float) -> None:
    with socket.socket(fileno=control) as trainer:
        try:
            function, seconds = _load(kind, Path(path), name, usual_seconds)
        except BarError as error:
            trainer.sendall(json.dumps({"fault": str(error)}).encode())
            return

        def answer(descriptor: int) -> dict[str, Any]:
            """Write the answer where the question stood."""
            with open(descriptor, "r+b") as paper:
                arguments = pickle.load(paper)
                # The trainer kills what takes too long. Should that be gone, this does.
                signal.alarm(math.ceil(seconds) + _GRACE_SECONDS)
                reply = _reply(function, kind, arguments, Path(path))
                signal.alarm(0)
                paper.seek(0)
                paper.truncate()
                paper.write(json.dumps(reply).encode())
            return {}

        serve(trainer, {"seconds": seconds}, lambda _, descriptors: answer(descriptors[0]))


def _load(kind: Kind, path: Path, name: str, usual_seconds: float) -> tuple[Function, float]:
    """The function, and the seconds it has. Raises BarError for a file that has none."""
    # Not by its own name: a file may be called as a library is.
    spec = importlib.util.spec_from_file_location(f"{kind.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # as of every .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))  # for what it imports from beside it
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise BarError(f"{error.filename}:{error.lineno}: not Python: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise BarError(f"{kind.name} {path} can't be loaded: {_reason(error, path)}") from None
    function, seconds = getattr(module, name, None), getattr(module, _LIMIT, usual_seconds)
    if not callable(function):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == spec.name
        ]
        raise BarError(f"{path} has no function {name}; there are {', '.join(own) or 'none'}")
    try:
        signature = inspect.signature(function)
        signature.bind(*kind.arguments)
    except TypeError:
        raise BarError(
            f"{path}: {name}{signature} can't be called as {kind.name}s are: "
            f"{name}({', '.join(kind.arguments)})"
        ) from None
    except ValueError:
        pass  # one written in C, which tells nothing
    if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise BarError(f"{path}: {_LIMIT} is {seconds!r}; give a number of seconds above 0")
    return function, float(seconds)


def _reply(
    function: Function, kind: Kind, arguments: tuple[Any, ...], path: Path
) -> dict[str, Any]:
    try:
        return {"value": kind.read(function(*arguments))}
    except VerifierFailed as error:
        return {"failed": str(error)}
    except BarError as error:
        return {"broken": str(error)[:_LONGEST]}
    except BaseException as error:  # SystemExit too
        return {"failed": _reason(error, path)}


def _reason(error: BaseException, path: Path) -> str:
    """A line on the error, with the last line of the user's file that led to it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    where = f" ({path.name}:{lines[-1]})" if lines else ""
    return " ".join(f"{type(error).__name__}: {error}"[:_LONGEST].split()) + where


if __name__ == "__main__":
    main(int(sys.argv[1]), KINDS[sys.argv[2]], sys.argv[3], sys.argv[4], float(sys.argv[5]))
