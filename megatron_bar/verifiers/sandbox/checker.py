"""Runs tests against code that runs in another process.

The names that the tests take from the tested code are stand-ins, which ask the other process. What
comes back is plain data, and every comparison is made here, where the tested code can't reach:
patching `assert`, `__eq__` or the test runner changes nothing that counts. Of an object that isn't
plain data a test can ask for attributes, items, length, iteration and calls; whether it equals
something, is greater or holds something is never its own to say.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
from typing import Any

from megatron_bar.verifiers.sandbox import wire

PASSED, FAILED = b"1", b"0"
# Tests use some modules without importing them; taken from the tested code they would be forgeable.
AT_HAND = ("collections", "copy", "datetime", "itertools", "math", "random", "re", "string", "sys")


class Peer:
    """The process of the tested code."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._stand_ins: dict[int, StandIn] = {}

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The result of the operation there. Raises what it raises there, if that is built in."""
        wire.send(self._channel, wire.encode([operation, *arguments], _handle_of))
        kind, *content = wire.receive(self._channel)
        if kind == "value":
            return wire.decode(content[0], self._stand_in)
        raise _exception(*content)

    def _stand_in(self, handle: int) -> StandIn:
        if not isinstance(handle, int):
            raise ValueError("not a handle")
        return self._stand_ins.setdefault(handle, StandIn(self, handle))


class StandIn:
    """An object of the tested code. Equal to itself alone, and to nothing as a truth value."""

    def __init__(self, peer: Peer, handle: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_handle", handle)

    def _ask(self, operation: str, *arguments: Any) -> Any:
        return object.__getattribute__(self, "_peer").ask(operation, self, *arguments)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("call", list(arguments), keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __iter__(self) -> Any:
        return self._ask("iter").__iter_here()

    def __iter_here(self) -> Any:
        while True:
            try:
                yield self._ask("next")
            except StopIteration:
                return

    def __len__(self) -> int:
        return self._ask("len")

    def __eq__(self, other: object) -> bool:
        return self is other  # not NotImplemented, which counts as true where a test calls this

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError("an object of the tested code is neither true nor false")


def _handle_of(value: Any) -> int:
    if isinstance(value, StandIn):
        return object.__getattribute__(value, "_handle")
    raise TypeError(f"a test can't hand {type(value).__name__} to the tested code")


def _exception(name: Any = "", text: Any = "") -> Exception:
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(str(text))
        except TypeError:  # it wants more than a text, as UnicodeDecodeError does
            pass
    return RuntimeError(f"{name}: {text}")


def main(tests: int, channel: int, verdict: int) -> None:
    """`tests`: a file with `setup`, `tests` and `remote`, the names to take from the tested code.

    Writes PASSED or FAILED to `verdict` for each test as it ends.
    """
    job = json.loads(wire.read_all(tests))
    peer = Peer(channel)
    namespace: dict[str, Any] = {name: importlib.import_module(name) for name in AT_HAND}
    namespace["__name__"] = "tests"
    sys.set_int_max_str_digits(0)
    if job["before"]:
        exec(job["before"], namespace)
    for name in job["remote"]:
        namespace[name] = peer.ask("global", name)
    exec(job["setup"], namespace)
    for test in job["tests"]:
        try:
            exec(test, namespace)
            passed = True
        except Exception:
            passed = False
        os.write(verdict, PASSED if passed else FAILED)
