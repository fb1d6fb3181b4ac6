"""The way in which objects of classes that both sides know cross, and functions of the tests.

Both sides run the reference's `shared` part, so that an object crosses as its class's name and its
attributes, and is one of the receiver's own class there: its methods are the receiver's. A test may
hand a function to tested code, which then runs a copy; the other way only a handle crosses.
"""

from __future__ import annotations

import ast
import marshal
import types
from collections.abc import Callable, Mapping
from typing import Any

from megatron_bar.verifiers.sandbox import wire


def classes(shared: str, namespace: Mapping[str, Any]) -> dict[str, type]:
    """The classes by name that the shared part defines, as they are in a namespace that ran it."""
    names = [node.name for node in ast.parse(shared).body if isinstance(node, ast.ClassDef)]
    return {name: namespace[name] for name in names if isinstance(namespace.get(name), type)}


def encode(value: Any, rest: Callable[[Any], Any]) -> Any:
    """An object of a shared class, as JSON."""
    return {"object": [type(value).__name__, wire.encode(vars(value), rest)]}


def decode(
    tag: str, content: Any, shared: Mapping[str, type], rest: Callable[[str, Any], Any]
) -> Any:
    """The object. Raises ValueError for what isn't one, or would hide its class's methods."""
    if tag != "object":
        raise ValueError("not a value")
    kind, attributes = shared[content[0]], wire.decode(content[1], rest)
    if any(callable(getattr(kind, name, None)) for name in attributes):
        raise ValueError("an attribute stands before a method")
    value: Any = object.__new__(kind)
    value.__dict__.update(attributes)
    return value


def encode_function(function: types.FunctionType, rest: Callable[[Any], Any]) -> Any:
    """A function of the tests: its code, and the values of the names that it uses."""
    code = function.__code__
    known = {
        name: function.__globals__[name]
        for name in code.co_names
        if name in function.__globals__ and function.__globals__[name] is not function
    }
    modules = {
        name: value.__name__ for name, value in known.items() if isinstance(value, types.ModuleType)
    }
    values = {name: value for name, value in known.items() if name not in modules}
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return {
        "function": [
            marshal.dumps(code).hex(),
            modules,
            *(wire.encode(part, rest) for part in (values, cells, function.__defaults__)),
        ]
    }


def decode_function(content: Any, rest: Callable[[str, Any], Any]) -> types.FunctionType:
    """The function. For the side of the tested code alone: it runs what it is given."""
    code, modules, *parts = content
    values, cells, defaults = (wire.decode(part, rest) for part in parts)
    known = {name: __import__(module, fromlist=["."]) for name, module in modules.items()}
    made = types.FunctionType(
        marshal.loads(bytes.fromhex(code)),
        known | values,
        None,
        defaults,
        tuple(map(types.CellType, cells)),
    )
    made.__globals__[made.__name__] = made
    return made
