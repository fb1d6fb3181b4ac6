"""Packed documents as attention takes them that goes by boundaries, not by a mask.

Rows lie end to end in one sequence of all their tokens, in which documents and the padding between
them follow each other. Shapes: B rows, T tokens of a whole row, D documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams

_BOUNDS = ("query_bounds_D", "key_bounds_D")


@dataclass(frozen=True)
class Span:
    """Consecutive queries of this rank, and the keys that they see some of.

    The queries of a document are its last ones in the span: they see the keys before them.
    """

    queries: slice
    keys: slice
    query_bounds_D: torch.Tensor  # int32: where documents begin among the queries, and the end
    key_bounds_D: torch.Tensor
    longest_queries: int
    longest_keys: int


@dataclass
class PackedDocuments(PackedSeqParams):
    """Boundaries as Megatron and Transformer Engine take them, and by span.

    A rank that has whole rows has one span. One of C context-parallel ranks has two a row, one
    from either end.
    """

    spans: tuple[Span, ...] = ()
    rows: int = 1

    def bounds(self) -> dict[str, torch.Tensor]:
        """The boundaries of all spans, by name."""
        return {
            f"{name}.{i}": getattr(span, name)
            for i, span in enumerate(self.spans)
            for name in _BOUNDS
        }

    def with_bounds(self, bounds: Mapping[str, torch.Tensor]) -> PackedDocuments:
        """The same with others in the place of its `bounds()`, such as copies on a GPU."""
        spans = tuple(
            dataclasses.replace(
                span,
                query_bounds_D=bounds[f"query_bounds_D.{i}"],
                key_bounds_D=bounds[f"key_bounds_D.{i}"],
            )
            for i, span in enumerate(self.spans)
        )
        return _with_spans(spans, self.rows)


def pack_documents(documents_BT: torch.Tensor, ranks: int = 1, rank: int = 0) -> PackedDocuments:
    """The spans of context-parallel rank `rank`, from what tells a row's documents apart.

    `documents_BT` is on the CPU and of whole rows, so nothing waits for a device.
    """
    rows, length = documents_BT.shape
    starts_D = torch.nonzero(starts(documents_BT).flatten()).flatten()
    if ranks == 1:
        return _with_spans((_span(starts_D, 0, rows * length, 0),), rows)
    size = length // (2 * ranks)
    spans, at = [], 0
    for row in range(rows):
        for part in (rank, 2 * ranks - 1 - rank):
            begin = row * length + part * size
            spans.append(_span(starts_D, begin, begin + size, at))
            at += size
    return _with_spans(tuple(spans), rows)


def starts(documents_BT: torch.Tensor) -> torch.Tensor:
    """True at the first token of each document and of each padding."""
    starts_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    starts_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return starts_BT


def _with_spans(spans: tuple[Span, ...], rows: int) -> PackedDocuments:
    first = spans[0]
    return PackedDocuments(
        qkv_format="thd",
        cu_seqlens_q=first.query_bounds_D,
        cu_seqlens_kv=first.key_bounds_D,
        max_seqlen_q=first.longest_queries,
        max_seqlen_kv=first.longest_keys,
        spans=spans,
        rows=rows,
    )


def _span(starts_D: torch.Tensor, begin: int, end: int, at: int) -> Span:
    """Queries of the places from `begin` to `end`, the rank's own from its `at`-th on."""
    first = int(torch.searchsorted(starts_D, begin, right=True)) - 1
    inner_D = starts_D[first + 1 : int(torch.searchsorted(starts_D, end))]
    first_key = int(starts_D[first])
    queries_D, keys_D = (
        torch.cat([torch.tensor([place]), inner_D, torch.tensor([end])]) - place
        for place in (begin, first_key)
    )
    return Span(
        slice(at, at + end - begin),
        slice(first_key, end),
        queries_D.int(),
        keys_D.int(),
        int(queries_D.diff().max()),
        int(keys_D.diff().max()),
    )
