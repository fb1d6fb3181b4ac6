"""Runs tested code, and answers calls to it, in a process where nothing else is to be found.

The process knows neither the tests nor what they expect. Whatever the code does to this file's
functions, to builtins or to the descriptors: all that it can send is answers.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from megatron_bar.verifiers.sandbox import wire


class Objects:
    """Objects that the tests hold handles of."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._handles: dict[int, int] = {}

    def handle(self, value: Any) -> int:
        """The same number for the same object; it is kept alive, so its id stays its own."""
        if id(value) not in self._handles:
            self._handles[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._handles[id(value)]

    def __getitem__(self, handle: int) -> Any:
        return self._objects[handle]


_OPERATIONS: dict[str, Any] = {
    "call": lambda function, arguments, keywords: function(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda container, key: container[key],
    "setitem": lambda container, key, value: container.__setitem__(key, value),
    "len": len,
    "iter": iter,
    "next": next,
}


def main(source: int, channel: int) -> None:
    """`source`: a file with the code. `channel`: a stream to the tests."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.set_int_max_str_digits(0)
    exec(compile(wire.read_all(source), "solution", "exec"), module.__dict__)
    objects = Objects()
    while True:
        try:
            request = wire.receive(channel)
        except wire.ConnectionClosed:
            return
        try:
            operation, *arguments = wire.decode(request, objects.__getitem__)
            if operation == "global":
                result = module.__dict__[arguments[0]]
            else:
                result = _OPERATIONS[operation](*arguments)
            reply = ["value", wire.encode(result, objects.handle)]
        except BaseException as error:
            reply = ["raised", type(error).__name__, str(error)[:200]]
        wire.send(channel, reply)
