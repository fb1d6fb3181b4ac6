"""Runs tests against code that runs in another process.

The names that the tests take from the tested code are stand-ins, which ask the other process. What
comes back is plain data, and every comparison is made here, where the tested code can't reach:
patching `assert`, `__eq__` or the test runner changes nothing that counts. Of an object that isn't
plain data a test can ask for attributes, items, length, iteration and calls; whether it equals
something, is greater or holds something is never its own to say. What it raises ends the test and
nothing less: no exception of its process is one that Python itself takes for the end of something.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
import types
from typing import Any

from megatron_bar.verifiers.sandbox import judging, objects, wire

PASSED, FAILED = b"1", b"0"
# Tests use some modules without importing them; taken from the tested code they would be forgeable.
AT_HAND = ("collections", "copy", "datetime", "itertools", "math", "random", "re", "string", "sys")


class Peer:
    """The process of the tested code."""

    def __init__(self, channel: int) -> None:
        self.shared: dict[str, type] = {}  # classes that both processes know
        self._channel = channel
        self._stand_ins: dict[int, StandIn] = {}

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The result of the operation there. Raises what it raises there, if that is built in."""
        wire.send(self._channel, wire.encode([operation, *arguments], self._encode))
        kind, *content = wire.receive(self._channel)
        if kind == "value":
            return wire.decode(content[0], self._decode)
        raise _exception(*content)

    def _encode(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            return {"handle": object.__getattribute__(value, "_handle")}
        if type(value) in self.shared.values():
            return objects.encode(value, self._encode)
        if isinstance(value, types.FunctionType):
            return objects.encode_function(value, self._encode)
        if isinstance(value, types.BuiltinFunctionType) and value.__module__ == "builtins":
            return objects.encode_function(
                eval(f"lambda *a, **k: {value.__name__}(*a, **k)", {}), self._encode
            )
        raise TypeError(f"a test can't hand {type(value).__name__} to the tested code")

    def _decode(self, tag: str, content: Any) -> Any:
        if tag not in ("handle", "match"):
            return objects.decode(tag, content, self.shared, self._decode)
        if not isinstance(content, int):
            raise ValueError("not a handle")
        kind = Match if tag == "match" else StandIn
        return self._stand_ins.setdefault(content, kind(self, content))


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
        iterator = self._ask("iter")
        while found := iterator._ask("next"):
            yield found[0]

    def __len__(self) -> int:
        return self._ask("len")

    def __eq__(self, other: object) -> bool:
        return self is other  # not NotImplemented, which counts as true where a test calls this

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError("an object of the tested code is neither true nor false")

    def __array__(self, *arguments: Any, **keywords: Any) -> Any:
        raise TypeError("an object of the tested code is no array")


class Match(StandIn):
    """A match of a regular expression, which is true."""

    def __bool__(self) -> bool:
        return True


# Python takes these for the end of an iteration, wherever they come from: all(map(f, values)) would
# be true of an f that raises one.
_ENDS = (StopIteration, StopAsyncIteration)


def _exception(name: Any = "", text: Any = "") -> Exception:
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _ENDS):
        try:
            return kind(str(text))
        except TypeError:  # it wants more than a text, as UnicodeDecodeError does
            pass
    return RuntimeError(f"{name}: {text}")


def main(tests: int, channel: int, verdict: int) -> None:
    """`tests`: a file with what the pool was given: `before`, `remote`, `setup`, `shared`, `tests`.

    Writes PASSED or FAILED to `verdict` for each test as it ends.
    """
    job = json.loads(wire.read_all(tests))
    peer = Peer(channel)
    namespace: dict[str, Any] = {name: importlib.import_module(name) for name in AT_HAND}
    namespace |= {"__name__": "tests"} | judging.FUNCTIONS
    judging.refuse_empty_arrays()
    sys.set_int_max_str_digits(0)
    if job["before"]:
        exec(job["before"], namespace)
    for name in job["remote"]:
        namespace[name] = peer.ask("global", name)
    exec(job["setup"], namespace)
    peer.shared = objects.classes(job["shared"], namespace)
    for test in job["tests"]:
        try:
            exec(test, namespace)
            passed = True
        except (Exception, SystemExit):
            passed = False
        os.write(verdict, PASSED if passed else FAILED)
