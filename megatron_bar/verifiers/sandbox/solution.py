"""Runs tested code, and answers calls to it, in a process where nothing else is to be found.

The process knows neither the tests nor what they expect. Whatever the code does to this file's
functions, to builtins or to the descriptors: all that it can send is answers.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import re
import sys
import types
from collections.abc import Sequence
from typing import Any

from megatron_bar.verifiers.sandbox import objects, wire


class Objects:
    """Objects that the tests know by number, and how they cross."""

    def __init__(self, shared: dict[str, type]) -> None:
        self._shared = shared
        self._objects: list[Any] = []
        self._handles: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        if type(value) in self._shared.values():
            return objects.encode(value, self.encode)
        # A match is true, which is all that most tests ask of one.
        return {"match" if isinstance(value, re.Match) else "handle": self._handle(value)}

    def decode(self, tag: str, content: Any) -> Any:
        if tag == "handle":
            return self._objects[content]
        if tag == "function":
            return objects.decode_function(content, self.decode)
        return objects.decode(tag, content, self._shared, self.decode)

    def _handle(self, value: Any) -> int:
        """The same number for the same object; it is kept alive, so its id stays its own."""
        if id(value) not in self._handles:
            self._handles[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._handles[id(value)]


_OPERATIONS: dict[str, Any] = {
    "call": lambda function, arguments, keywords: function(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda container, key: container[key],
    "setitem": lambda container, key, value: container.__setitem__(key, value),
    "len": len,
    "iter": iter,
    # The end is a value, and no exception: those of tested code end nothing but the test.
    "next": lambda iterator: list(itertools.islice(iterator, 1)),
}


def first_that_compiles(sources: Sequence[str], name: str) -> types.CodeType:
    """The first of the texts that is Python. Raises what the last one raises if none is."""
    for source in sources[:-1]:
        with contextlib.suppress(Exception):
            return compile(source, name, "exec")
    return compile(sources[-1], name, "exec")


def main(source: int, channel: int) -> None:
    """`source`: a file with `sources` and `shared`, as the pool has. `channel`: to the tests."""
    job = json.loads(wire.read_all(source))
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.set_int_max_str_digits(0)
    code = first_that_compiles(job["sources"], "solution")
    for statement in ast.parse(job["shared"]).body:
        with contextlib.suppress(Exception):  # a class may be built on one of the tested code
            exec(ast.unparse(statement), module.__dict__)
    held = Objects(objects.classes(job["shared"], module.__dict__))
    exec(code, module.__dict__)
    while True:
        try:
            request = wire.receive(channel)
        except wire.ConnectionClosed:
            return
        try:
            operation, *arguments = wire.decode(request, held.decode)
            if operation == "global":
                result = module.__dict__[arguments[0]]
            else:
                result = _OPERATIONS[operation](*arguments)
            reply = ["value", wire.encode(result, held.encode)]
        except BaseException as error:
            reply = ["raised", type(error).__name__, str(error)[:200]]
        wire.send(channel, reply)
