"""Records of JSON files: an object a line, a list, or one object that may hold the list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_bar.data.byte_files import Bytes, Reader, bytes_of
from megatron_bar.data.json_text import NotJson, parse_json
from megatron_bar.data.records import Record, Records, file_identity
from megatron_bar.runtime.errors import BarError

_SHORTEST_RECORD = len('{"text": ""}')  # a line may only be blank if it is shorter
_BOM = b"\xef\xbb\xbf"
_LIST_KEY = "data"  # of an object that is a whole file


@dataclass(frozen=True)
class JsonLines:
    """A JSON object a line. Lines that are blank don't count."""

    path: Path

    @cached_property
    def _bytes(self) -> Bytes:
        return bytes_of(self.path)

    @cached_property
    def _lines(self) -> np.ndarray:
        """First byte, last byte and number (from 1) of each line that isn't blank."""
        ends = [np.array([-1], np.int64)]
        size = 0
        for block in self._bytes.blocks():
            ends.append(size + np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")))
            size += len(block)
        ends.append(np.array([size]))
        bounds = np.concatenate(ends)
        lines = np.stack([bounds[:-1] + 1, bounds[1:], np.arange(1, len(bounds))], axis=1)
        lines = lines[lines[:, 1] > lines[:, 0]]
        short = np.flatnonzero(lines[:, 1] - lines[:, 0] < _SHORTEST_RECORD)
        with self._bytes.open() as reader:
            blank = [
                place
                for place in short
                if not _bare(reader.read(*lines[place, :2].tolist())).strip()
            ]
        return np.delete(lines, blank, axis=0)

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[str, Record | BarError]]:
        with self._bytes.open() as reader:
            for index in chosen:
                start, end, number = self._lines[index].tolist()
                yield f"{self.path}:{number}", self._record(reader, start, end)

    def _record(self, reader: Reader, start: int, end: int) -> Record | BarError:
        try:
            return parse_json(_bare(reader.read(start, end)).decode())
        except UnicodeDecodeError as error:
            return BarError(f"not UTF-8: {error.reason}")
        except BarError as error:
            return error

    @property
    def identity(self) -> Any:
        return file_identity(self.path)


@dataclass(frozen=True)
class JsonItems:
    """The items of a JSON list that is a whole file, all of them in memory."""

    path: Path
    items: Sequence[Record]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[str, Record | BarError]]:
        return ((f"{self.path} item {index + 1}", self.items[index]) for index in chosen)

    @property
    def identity(self) -> Any:
        return file_identity(self.path)


def json_records(path: Path) -> Records:
    """The records of a file of lines, of a list, or of one object over several lines.

    An object whose `data` is a list stands for that list.

    Raises BarError if the file is none of these.
    """
    lines = JsonLines(path)
    if not len(lines):
        return lines
    ((_, first),) = lines.read([0])
    if isinstance(first, dict) and not (len(lines) == 1 and _is_list(first.get(_LIST_KEY))):
        return lines
    content = _bare(b"".join(bytes_of(path).blocks()))
    try:
        whole = parse_json(content.decode())
    except (UnicodeDecodeError, NotJson) as error:
        if not content.lstrip().startswith(b"["):  # lines, the first of which is broken
            return lines
        if isinstance(error, UnicodeDecodeError):
            raise BarError(f"{path} isn't UTF-8: {error.reason}; save it as UTF-8") from None
        raise BarError(f"{path}:{error.line}: {error}") from None
    if isinstance(whole, dict):
        whole = whole[_LIST_KEY] if _is_list(whole.get(_LIST_KEY)) else [whole]
    return JsonItems(path, whole) if isinstance(whole, list) else lines


def _is_list(value: Any) -> bool:
    """A list of objects, not of turns."""
    return (
        isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)
    )


def _bare(line: bytes) -> bytes:
    return line.removeprefix(_BOM)
