"""Records of tables: Parquet files, and what the library `datasets` loads.

Arrow gives every object all keys that any object in its column has, null where it hasn't the key;
in objects within a column such keys are left out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_bar.data.records import Record, file_identity
from megatron_bar.runtime.errors import BarError

_RECORDS_AT_ONCE = 1000


@dataclass(frozen=True)
class Parquet:
    """The rows of a Parquet file, a row group in memory at a time."""

    path: Path

    @cached_property
    def _ends(self) -> np.ndarray:
        """The number of rows up to the end of each row group."""
        metadata = self._open().metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return np.cumsum(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[str, Record | BarError]]:
        file = self._open()
        indices = np.asarray(chosen, np.int64)
        groups = np.searchsorted(self._ends, indices, side="right")
        for group in np.unique(groups):
            mine = indices[groups == group]
            first = self._ends[group - 1] if group else 0
            rows = file.read_row_group(group).take(mine - first).to_pylist()
            yield from zip((f"{self.path} row {index + 1}" for index in mine), map(_row, rows))

    @property
    def identity(self) -> Any:
        return file_identity(self.path)

    def _open(self):
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise BarError(f"{self.path} is not a whole parquet file: {error}") from None


@dataclass(frozen=True)
class Dataset:
    """A split of a dataset that the library `datasets` can load, memory-mapped by it."""

    name: str
    split: str

    @cached_property
    def _dataset(self):
        import datasets  # slow to import, and most sources are files
        from huggingface_hub import constants

        try:
            return datasets.load_dataset(self.name, split=self.split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            hint = ""
            if constants.HF_HUB_OFFLINE and not Path(self.name).exists():
                hint = "; megatron-bar data prepare downloads it where there is a network"
            raise BarError(
                f"dataset {self.name}, split {self.split}, can't be loaded: {reason}{hint}"
            ) from None

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[str, Record | BarError]]:
        for start in range(0, len(chosen), _RECORDS_AT_ONCE):
            some = chosen[start : start + _RECORDS_AT_ONCE]
            rows = self._dataset.select(some).to_list()
            yield from zip((f"{self.name} row {index + 1}" for index in some), map(_row, rows))

    @property
    def identity(self) -> Any:
        return self._dataset._fingerprint


def _row(row: Record) -> Record:
    return {column: _without_nulls(value) for column, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value
