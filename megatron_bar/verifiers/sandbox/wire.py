"""Values that tested code and its tests exchange: plain data by value, all else as its sides say.

Plain data are those of built-in types and arrays and numbers of numpy. What arrives is decoded to
these types, whatever was sent: an object with an `__eq__` of its own can't cross. A value of a
subclass (Counter, namedtuple, an overridden str) arrives as its base type. Each side decides what
becomes of the rest: of functions, and of objects of classes.
"""

from __future__ import annotations

import builtins
import datetime
import json
import os
import re
import struct
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_FRAME = 8 << 20  # bytes
_EXACT_INT = 1 << 53
# Type, its tag, to JSON, from JSON. A subclass goes before its base.
_TYPES: tuple[tuple[type, str, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    (bytes, "bytes", bytes.hex, bytes.fromhex),
    (bytearray, "bytearray", lambda v: bytes(v).hex(), bytearray.fromhex),
    (complex, "complex", lambda v: [v.real, v.imag], lambda v: complex(*map(float, v))),
    (Decimal, "decimal", str, Decimal),
    (Fraction, "fraction", str, Fraction),
    (range, "range", lambda v: [v.start, v.stop, v.step], lambda v: range(*v)),
    (datetime.datetime, "datetime", datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    (datetime.date, "date", datetime.date.isoformat, datetime.date.fromisoformat),
    (datetime.time, "time", datetime.time.isoformat, datetime.time.fromisoformat),
    (
        datetime.timedelta,
        "timedelta",
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda v: datetime.timedelta(*v),
    ),
)
_DECODE = {tag: decode for _, tag, _, decode in _TYPES}
_COLLECTIONS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
# Types of elements: truth values, numbers, text.
_ELEMENTS = re.compile(r"[<>|=][biufcSU]\d{1,4}")


class ConnectionClosed(Exception):
    """The other side has gone."""


def send(descriptor: int, message: Any) -> None:
    """Write one message. Raises ValueError beyond MAX_FRAME, ConnectionClosed if no one reads."""
    data = json.dumps(message, check_circular=False).encode()
    if len(data) > MAX_FRAME:
        raise ValueError(f"{len(data)} bytes are too long to send")
    view = memoryview(struct.pack("<I", len(data)) + data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        raise ConnectionClosed from None


def receive(descriptor: int) -> Any:
    """Read one message. Raises ConnectionClosed at the end of the stream, and for none of ours."""
    (length,) = struct.unpack("<I", _exactly(descriptor, 4))
    if length > MAX_FRAME:
        raise ConnectionClosed
    try:
        return json.loads(_exactly(descriptor, length))
    except (ValueError, RecursionError):
        raise ConnectionClosed from None


def read_all(descriptor: int) -> bytes:
    """A file from its start, whatever its offset is."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(descriptor, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _exactly(descriptor: int, length: int) -> bytes:
    pieces = []
    while length:
        try:
            piece = os.read(descriptor, min(length, 1 << 20))
        except OSError:
            raise ConnectionClosed from None
        if not piece:
            raise ConnectionClosed
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def encode(value: Any, rest: Callable[[Any], Any]) -> Any:
    """`value` as JSON. `rest` does the same for what isn't plain data, as an object of one key.

    Raises RecursionError for data that contains itself.
    """
    if value is None or isinstance(value, bool):
        return value
    if (numpy := sys.modules.get("numpy")) and isinstance(value, numpy.ndarray | numpy.generic):
        return _encode_array(value, rest)
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < _EXACT_INT else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(item, rest) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[encode(k, rest), encode(v, rest)] for k, v in dict.items(value)]}
    for tag in _COLLECTIONS:
        if isinstance(value, getattr(builtins, tag)):
            return {tag: [encode(item, rest) for item in value]}
    for kind, tag, to_json, _ in _TYPES:
        if isinstance(value, kind):
            return {tag: to_json(value)}
    if isinstance(value, type) and getattr(builtins, name := value.__name__, None) is value:
        return {"type": name}
    return rest(value)


def decode(data: Any, rest: Callable[[str, Any], Any]) -> Any:
    """The value that `encode` was given; `rest` is asked for what its own side made, by its key.

    Raises ValueError for anything that `encode` can't have made.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode(item, rest) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("not a value")
    ((tag, content),) = data.items()
    try:
        if tag == "int":
            return int(content, 16)
        if tag == "dict":
            return {decode(k, rest): decode(v, rest) for k, v in content}
        if tag in _COLLECTIONS:
            return _COLLECTIONS[tag](decode(item, rest) for item in content)
        if tag == "type" and isinstance(getattr(builtins, content), type):
            return getattr(builtins, content)
        if tag == "array":
            elements, shape, items, single = content
            return _decode_array(elements, shape, decode(items, rest), single)
        if tag in _DECODE:
            return _DECODE[tag](content)
        return rest(tag, content)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not a value: {error}") from None


def _encode_array(value: Any, rest: Callable[[Any], Any]) -> Any:
    """A number of numpy's is an array without dimensions. One of objects crosses as lists."""
    numpy = sys.modules["numpy"]
    if value.dtype.char in "gG":  # the machine's longest numbers, which Python has no like of
        value = value.astype("f8" if value.dtype.char == "g" else "c16")
    if _ELEMENTS.fullmatch(value.dtype.str):
        items = numpy.asarray(value).ravel().tolist()
        return {
            "array": [
                value.dtype.str,
                list(value.shape),
                encode(items, rest),
                isinstance(value, numpy.generic),
            ]
        }
    items = value.tolist()
    return rest(value) if isinstance(items, numpy.generic | numpy.ndarray) else encode(items, rest)


def _decode_array(elements: Any, shape: Any, items: Any, single: Any) -> Any:
    if not _ELEMENTS.fullmatch(elements):
        raise ValueError("no type of elements")
    array = sys.modules["numpy"].array(items, dtype=elements).reshape(shape)
    return array[()] if single else array
