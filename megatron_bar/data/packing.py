"""Documents of any length in rows of one length, kept apart by the attention mask.

Packing only decides which document goes into which row; the tokens stay where they are, on disk or
in memory, until a row is taken. Shapes: R rows, S sequence, D documents.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json, whole_folder, write_json

_ARRAYS = ("source_D", "document_D", "starts_R")
_REPORT = "report.json"


@dataclass(frozen=True)
class Example:
    """A document: its tokens, and which of them carry loss."""

    ids: Sequence[int] | np.ndarray
    loss_mask: Sequence[bool] | np.ndarray


class Documents(Protocol):
    """Tokenized documents of one source."""

    @property
    def lengths_D(self) -> np.ndarray: ...

    def supervised_D(self, limit: int) -> np.ndarray:
        """Tokens of each document that carry loss, within its first `limit` but the first."""
        ...

    def get(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Examples:
    """Documents that are in memory."""

    examples: Sequence[Example]

    @property
    def lengths_D(self) -> np.ndarray:
        return np.array([len(example.ids) for example in self.examples], np.int64)

    def supervised_D(self, limit: int) -> np.ndarray:
        return np.array([np.sum(e.loss_mask[1:limit]) for e in self.examples], np.int64)

    def get(self, index: int) -> Example:
        return self.examples[index]


@dataclass(frozen=True)
class PackedDocuments:
    """Documents and the rows they belong to.

    Row r holds the members from starts_R[r] to starts_R[r + 1]. Member m is document document_D[m]
    of source source_D[m].
    """

    sources: Mapping[str, Documents]
    source_D: np.ndarray
    document_D: np.ndarray
    starts_R: np.ndarray
    report: PackReport

    ordered: ClassVar[bool] = False

    @property
    def source_names(self) -> tuple[str, ...]:
        return tuple(self.sources)

    @property
    def per_epoch(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return len(self.starts_R) - 1

    def save(self, folder: Path) -> None:
        """Write down which document goes where, under `folder`, whole or not at all."""
        with whole_folder(folder, overwrite=True) as staging:
            for name in _ARRAYS:
                np.save(staging / f"{name}.npy", getattr(self, name))
            write_json(staging / _REPORT, dataclasses.asdict(self.report))

    @classmethod
    def load(cls, folder: Path, sources: Mapping[str, Documents]) -> PackedDocuments:
        """The rows that `save` wrote, memory-mapped. `sources` are those that were packed."""
        source_D, document_D, starts_R = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
        )
        report = PackReport(**read_json(folder / _REPORT))
        return cls(sources, source_D, document_D, starts_R, report)

    def take(self, indices: Sequence[int] | np.ndarray) -> PackedRows:
        """The rows at `indices`, in that order, read into memory."""
        sources = list(self.sources.values())
        length = self.report.sequence_length
        rows = PackedRows.empty(len(indices), length, self.source_names, self.report)
        for row, index in enumerate(indices):
            end = 0
            first, last = self.starts_R[index], self.starts_R[index + 1]
            for number, member in enumerate(range(first, last), 1):
                source = self.source_D[member]
                example = sources[source].get(int(self.document_D[member]))
                start, end = end, min(end + len(example.ids), length)
                rows.tokens_RS[row, start:end] = example.ids[: end - start]
                rows.loss_RS[row, start + 1 : end] = example.loss_mask[1 : end - start]
                rows.documents_RS[row, start:end] = number
                rows.sources_RS[row, start:end] = source
        return rows


def pack(
    sources: Mapping[str, Documents],
    sequence_length: int,
    overlong: str = "truncate",
    picks: Sequence[np.ndarray] | None = None,
) -> PackedDocuments:
    """Put whole documents into as few rows as best-fit-decreasing finds.

    `picks` says which documents of each source take part, all of them by default. Depends on the
    documents and their order alone. One longer than a row loses its end, as in the published
    recipe, or with `overlong` "drop" is dropped. One that is left with nothing to learn is dropped.

    Raises BarError if no document remains.
    """
    _check_length(sequence_length)
    if picks is None:
        picks = [np.arange(len(documents.lengths_D)) for documents in sources.values()]
    source_D = np.repeat(np.arange(len(picks), dtype=np.int16), [len(some) for some in picks])
    document_D = np.concatenate(picks)
    pairs = list(zip(sources.values(), picks))
    lengths_D = np.concatenate([documents.lengths_D[some] for documents, some in pairs])
    supervised_D = np.concatenate([d.supervised_D(sequence_length)[some] for d, some in pairs])
    too_long_D = lengths_D > sequence_length
    dropped_D = too_long_D & (overlong == "drop")
    useless_D = ~dropped_D & (supervised_D == 0)
    kept = np.flatnonzero(~dropped_D & ~useless_D)
    if not len(kept):
        raise BarError(
            f"none of {len(lengths_D)} examples has anything to learn within sequence_length "
            f"{sequence_length}; raise it or check the data"
        )
    lengths = np.minimum(lengths_D[kept], sequence_length)
    row_of = np.array(_best_fit(lengths.tolist(), sequence_length))
    order = np.argsort(row_of, kind="stable")
    members = kept[order]
    starts_R = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
    report = PackReport(
        rows=len(starts_R) - 1,
        sequence_length=sequence_length,
        documents=len(kept),
        tokens=int(lengths.sum()),
        supervised=int(supervised_D[kept].sum()),
        truncated=int((too_long_D & ~dropped_D).sum()),
        dropped_overlong=int(dropped_D.sum()),
        dropped_unsupervised=int(useless_D.sum()),
    )
    for number, name in enumerate(sources):
        mine = kept[source_D[kept] == number]
        report.documents_by_source[name] = len(mine)
        report.supervised_by_source[name] = int(supervised_D[mine].sum())
    return PackedDocuments(sources, source_D[members], document_D[members], starts_R, report)


def pack_examples(
    examples: Sequence[Example], sequence_length: int, source: str = "examples"
) -> PackedRows:
    """Rows of a few examples, in memory. Raises BarError as `pack` does."""
    packed = pack({source: Examples(examples)}, sequence_length)
    return packed.take(range(len(packed)))


def pack_texts(
    documents: Sequence[np.ndarray], sequence_length: int, source: str = "texts"
) -> PackedRows:
    """Put tokenized texts, which end with eos, one after the other and cut them into rows.

    All tokens carry loss but the first of a document, and of the rest of a document that a row's
    end cut in two. The last row is padded.

    Raises BarError if nothing remains.
    """
    _check_length(sequence_length)
    if not documents:
        raise BarError("the texts hold no tokens to train on; check the data")
    lengths = [len(ids) for ids in documents]
    used = sum(lengths)
    report = PackReport(sequence_length=sequence_length, documents=len(documents), tokens=used)
    rows = PackedRows.empty(-(-used // sequence_length), sequence_length, (source,), report)
    documents_RS = rows.documents_RS
    rows.tokens_RS.reshape(-1)[:used] = np.concatenate(documents)
    documents_RS.reshape(-1)[:used] = np.repeat(np.arange(1, len(documents) + 1), lengths)
    rows.sources_RS[documents_RS > 0] = 0
    first_R1 = documents_RS[:, :1] - 1
    np.subtract(documents_RS, first_R1, out=documents_RS, where=documents_RS > 0)
    rows.loss_RS[:, 1:] = (documents_RS[:, 1:] == documents_RS[:, :-1]) & (documents_RS[:, 1:] > 0)
    report.rows, report.supervised = len(rows), int(rows.loss_RS.sum())
    report.documents_by_source[source] = report.documents
    report.supervised_by_source[source] = report.supervised
    return rows


def _check_length(sequence_length: int) -> None:
    if sequence_length < 2:
        raise BarError(f"sequence_length is {sequence_length}; give at least 2")


def _best_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """The row of each length: longest first, each into the fullest row that has room for it."""
    row_of = [0] * len(lengths)
    spaces: list[int] = []  # the different amounts of room in rows, sorted
    rows_with: dict[int, list[int]] = {}  # the rows that have so much room
    rows = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(spaces, lengths[index])
        if place < len(spaces):
            space = spaces[place]
            row = rows_with[space].pop()
            if not rows_with[space]:
                del rows_with[space], spaces[place]
        else:
            space, row = capacity, rows
            rows += 1
        row_of[index] = row
        room = space - lengths[index]
        if room not in rows_with:
            rows_with[room] = []
            insort(spaces, room)
        rows_with[room].append(row)
    return row_of
