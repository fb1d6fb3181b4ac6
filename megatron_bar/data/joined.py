"""Rows of several mixtures, one after the other, for a stage that trains on all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_bar.data.batches import Batches
from megatron_bar.data.rows import PackedRows, PackReport, Rows


class JoinedRows:
    """The rows that the `steps` first steps on each of `parts` read, in one set to be shuffled.

    A row that a part reads twice is here twice. Sources of one name count as one.
    """

    ordered = False

    def __init__(
        self, parts: Sequence[Rows], steps: Sequence[int], batch_sizes: Sequence[int], seed: int
    ) -> None:
        self.parts = list(parts)
        self.source_names = tuple(dict.fromkeys(n for p in parts for n in p.source_names))
        read = []
        for rows, count, size in zip(parts, steps, batch_sizes):
            batches = Batches.of(rows, size, seed)
            read.append(np.concatenate([batches.indices(step) for step in range(count)]))
        self._part_R = np.repeat(np.arange(len(read)), [len(indices) for indices in read])
        self._index_R = np.concatenate(read)

    @property
    def per_epoch(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return len(self._index_R)

    def take(self, indices: Sequence[int] | np.ndarray) -> PackedRows:
        """The rows at `indices`, in that order, read into memory."""
        indices = np.asarray(indices)
        taken: PackedRows | None = None
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(self._part_R[indices] == number)
            if not len(places):
                continue
            rows = part.take(self._index_R[indices[places]])
            if taken is None:
                length = rows.tokens_RS.shape[1]
                taken = PackedRows.empty(len(indices), length, self.source_names, PackReport())
            taken.tokens_RS[places] = rows.tokens_RS
            taken.loss_RS[places] = rows.loss_RS
            taken.documents_RS[places] = rows.documents_RS
            # By the part's own number; padding's, -1, picks the last entry and stays -1.
            numbers = np.array([*map(self.source_names.index, part.source_names), -1], np.int16)
            taken.sources_RS[places] = numbers[rows.sources_RS]
        assert taken is not None, "no rows were asked for"
        return taken
