"""Records of one source, counted at once, and read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_bar.runtime.digests import content_digest
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import json_digest

Record = dict[str, Any]


class Records(Protocol):
    """Records in a fixed order. What isn't read yet takes a few bytes a record."""

    def __len__(self) -> int: ...

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[str, Record | BarError]]:
        """Yield the place of each of the `chosen` ones (in rising order), and the record itself.

        In place of a record that can't be read there is the error that says why.
        """
        ...

    @property
    def identity(self) -> Any:
        """A JSON value that changes when the records do."""
        ...


@dataclass(frozen=True)
class Listed:
    """Records that are in memory."""

    records: Sequence[Record]
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[str, Record | BarError]]:
        return ((self.where(index), self.records[index]) for index in chosen)

    @property
    def identity(self) -> Any:
        return json_digest(self.records)


@dataclass(frozen=True)
class Chained:
    """The records of several files, one after the other."""

    parts: Sequence[Records]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[str, Record | BarError]]:
        indices = np.asarray(chosen, np.int64)
        part_of = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(part_of):
            first = self._ends[number - 1] if number else 0
            yield from self.parts[number].read((indices[part_of == number] - first).tolist())

    @property
    def identity(self) -> Any:
        return [part.identity for part in self.parts]


def file_identity(path: Path) -> str:
    """A digest of what is in the file, wherever it lies and whenever it was written."""
    return content_digest(path)
