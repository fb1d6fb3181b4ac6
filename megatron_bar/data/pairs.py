"""Rows of preference pairs: the chosen conversation in one half, the rejected one in the other.

Shapes: P pairs, R rows, S tokens of a conversation, so that a row has 2 S.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from megatron_bar.data.rows import PackedRows, PackReport, Rows
from megatron_bar.data.store import StoredDocuments
from megatron_bar.runtime.errors import BarError

_LENGTH_UNIT = 64  # trimmed conversations are a multiple, so that tensor ranks can share rows


class PairRows:
    """A pair a row; the documents of a source are its pairs' conversations, chosen and rejected.

    `picks` says which pairs of each source take part. Conversations longer than `length` lose their
    end, or with `overlong: drop` their pair is left out; one that is left with nothing to learn
    leaves out its pair, too.

    Raises BarError if no pair remains.
    """

    ordered = False

    def __init__(
        self,
        sources: Mapping[str, StoredDocuments],
        picks: Sequence[np.ndarray],
        length: int,
        overlong: str,
    ) -> None:
        self.sources, self.length = list(sources.values()), length
        self.source_names = tuple(sources)
        source_P = np.repeat(np.arange(len(picks), dtype=np.int16), [len(some) for some in picks])
        pair_P = np.concatenate(picks)
        lengths_P2, supervised_P2 = (
            np.concatenate(
                [of(documents).reshape(-1, 2)[some] for documents, some in zip(self.sources, picks)]
            )
            for of in (lambda d: d.lengths_D, lambda d: d.supervised_D(length))
        )
        too_long_P = (lengths_P2 > length).any(-1)
        dropped_P = too_long_P & (overlong == "drop")
        useless_P = ~dropped_P & (supervised_P2 == 0).any(-1)
        kept = np.flatnonzero(~dropped_P & ~useless_P)
        if not len(kept):
            raise BarError(
                f"none of {len(pair_P)} preference pairs has something to learn from in "
                f"both answers within sequence_length {length}; raise it or check the "
                "data"
            )
        self._source_R, self._pair_R = source_P[kept], pair_P[kept]
        self.report = PackReport(
            rows=len(kept),
            sequence_length=2 * length,
            documents=2 * len(kept),
            tokens=int(np.minimum(lengths_P2[kept], length).sum()),
            supervised=int(supervised_P2[kept].sum()),
            truncated=int((lengths_P2[kept] > length).sum()),
            dropped_overlong=2 * int(dropped_P.sum()),
            dropped_unsupervised=2 * int(useless_P.sum()),
        )
        for number, name in enumerate(sources):
            mine = kept[source_P[kept] == number]
            self.report.documents_by_source[name] = 2 * len(mine)
            self.report.supervised_by_source[name] = int(supervised_P2[mine].sum())

    @property
    def per_epoch(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return len(self._pair_R)

    def take(self, indices: Sequence[int] | np.ndarray) -> PackedRows:
        """The pairs at `indices`, in that order, read into memory."""
        rows = PackedRows.empty(len(indices), 2 * self.length, self.source_names, self.report)
        for row, index in enumerate(indices):
            source, pair = self._source_R[index], self._pair_R[index]
            for half in range(2):
                example = self.sources[source].get(int(2 * pair + half))
                size, start = min(len(example.ids), self.length), half * self.length
                place = slice(start, start + size)
                rows.tokens_RS[row, place] = example.ids[:size]
                rows.loss_RS[row, start + 1 : start + size] = example.loss_mask[1:size]
                rows.documents_RS[row, place] = half + 1
                rows.sources_RS[row, place] = source
        return rows


class PairBatches:
    """Rows of pairs as they are trained on, each with what the reference policy says of it.

    With `trims` the rows that are taken together are only as long as the longest conversation
    among them asks for, so that they differ from one micro-batch and rank to the next.
    """

    def __init__(self, rows: Rows, trims: bool) -> None:
        self.rows, self.trims = rows, trims
        self.source_names, self.ordered = rows.source_names, rows.ordered
        self.per_epoch = rows.per_epoch
        self.reference_R: np.ndarray | None = None  # once it is known; see `Batch.reference_R`

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int] | np.ndarray) -> PackedRows:
        """See `Rows`."""
        rows = self.rows.take(indices)
        if self.trims:
            rows = _trimmed(rows)
        if self.reference_R is None:
            return rows
        return dataclasses.replace(rows, reference_R=self.reference_R[np.asarray(indices)])


def _trimmed(rows: PackedRows) -> PackedRows:
    """Both halves of the rows without the end that is padding in all of them."""
    count, length = rows.documents_RS.shape
    used = (rows.documents_RS.reshape(count, 2, -1) > 0).sum(-1).max()
    half = min(-(-used // _LENGTH_UNIT) * _LENGTH_UNIT, length // 2)
    return dataclasses.replace(
        rows,
        **{
            name: getattr(rows, name).reshape(count, 2, -1)[:, :, :half].reshape(count, -1)
            for name in ("tokens_RS", "loss_RS", "documents_RS", "sources_RS")
        },
    )
