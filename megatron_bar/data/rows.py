"""Rows that training reads: of one length, each with documents beside each other.

`documents` numbers a row's documents from 1; 0 is padding. `loss[t]` says that the token AT t is
learned. The first token of a document never is: nothing before it in its row belongs to it.

Shapes: R rows, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np


class Rows(Protocol):
    """Rows that a stage trains on, in memory or on disk."""

    @property
    def source_names(self) -> tuple[str, ...]: ...

    @property
    def ordered(self) -> bool:
        """Whether they lie in the order to train in, so that no one must shuffle them."""
        ...

    @property
    def per_epoch(self) -> int:
        """The number of rows that it takes to go through the data once."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int] | np.ndarray) -> PackedRows:
        """The rows at `indices`, in that order."""
        ...


@dataclass
class PackReport:
    """Counts of a packing, to say before training starts."""

    rows: int = 0
    sequence_length: int = 0
    documents: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0  # documents that lost their end
    dropped_overlong: int = 0
    dropped_unsupervised: int = 0  # documents in which nothing carries loss, after truncation
    documents_by_source: dict[str, int] = field(default_factory=dict)
    supervised_by_source: dict[str, int] = field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        """Share of the rows that isn't padding."""
        return self.tokens / max(1, self.rows * self.sequence_length)

    def __str__(self) -> str:
        lost = [
            f"{number} {what}"
            for number, what in (
                (self.truncated, "truncated"),
                (self.dropped_overlong, "dropped as too long"),
                (self.dropped_unsupervised, "dropped for lack of supervised tokens"),
            )
            if number
        ]
        return ", ".join(
            [
                f"{self.documents} documents in {self.rows} rows of {self.sequence_length}",
                f"{self.tokens} tokens ({self.efficiency:.1%} full)",
                f"{self.supervised} supervised",
                *lost,
            ]
        )


@dataclass(frozen=True)
class PackedRows:
    """Rows in memory. Tokens of padding are 0 here; `to_batch` sets the real padding id."""

    tokens_RS: np.ndarray  # int32
    loss_RS: np.ndarray  # bool
    documents_RS: np.ndarray  # int32
    sources_RS: np.ndarray  # int16: index into source_names, -1 in padding
    report: PackReport
    source_names: tuple[str, ...] = ("data",)
    reference_R: np.ndarray | None = None  # float32, of preference pairs: `Batch.reference_R`

    ordered: ClassVar[bool] = False

    @classmethod
    def empty(
        cls, rows: int, sequence_length: int, source_names: tuple[str, ...], report: PackReport
    ) -> PackedRows:
        """Rows of padding, to be filled."""
        shape = (rows, sequence_length)
        return cls(
            np.zeros(shape, np.int32),
            np.zeros(shape, bool),
            np.zeros(shape, np.int32),
            np.full(shape, -1, np.int16),
            report,
            source_names,
        )

    @property
    def per_epoch(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return len(self.tokens_RS)

    def take(self, indices: Sequence[int] | np.ndarray) -> PackedRows:
        """The rows at `indices`, in that order. The report stays that of all rows."""
        return PackedRows(
            self.tokens_RS[indices],
            self.loss_RS[indices],
            self.documents_RS[indices],
            self.sources_RS[indices],
            self.report,
            self.source_names,
            None if self.reference_R is None else self.reference_R[indices],
        )
