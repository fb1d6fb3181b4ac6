"""Rows of several mixtures for one stage: exactly those that each by itself would be read."""

from __future__ import annotations

import numpy as np

from megatron_bar.data.batches import Batches
from megatron_bar.data.encoding import Example
from megatron_bar.data.joined import JoinedRows
from megatron_bar.data.packing import Examples, pack


def packed(sources: dict[str, range]):
    """A row of 8 for each number: its only document, which holds the number seven times."""
    return pack(
        {
            name: Examples([Example(np.full(7, number), np.ones(7, bool)) for number in numbers])
            for name, numbers in sources.items()
        },
        8,
    )


def test_joined_rows_are_what_the_parts_read():
    parts = [
        packed({"math": range(100, 105), "general": range(200, 203)}),
        packed({"general": range(200, 203), "code": range(300, 302)}),
    ]
    steps, sizes, seed = [3, 4], [4, 2], 7
    joined = JoinedRows(parts, steps, sizes, seed)
    assert len(joined) == joined.per_epoch == 3 * 4 + 4 * 2 and not joined.ordered
    assert joined.source_names == ("math", "general", "code")
    everything = joined.take(range(len(joined)))
    read = [
        part.take(Batches.of(part, size, seed).indices(step)).tokens_RS
        for part, count, size in zip(parts, steps, sizes)
        for step in range(count)
    ]
    assert np.array_equal(everything.tokens_RS, np.concatenate(read))
    # A source is one, whichever part a row comes from; padding has none.
    for tokens_S, sources_S, documents_S in zip(
        everything.tokens_RS, everything.sources_RS, everything.documents_RS
    ):
        assert (sources_S[:7] == tokens_S[0] // 100 - 1).all() and sources_S[7] == -1
        assert list(documents_S) == [1] * 7 + [0]


def test_rows_are_taken_in_the_order_asked_for():
    joined = JoinedRows(
        [packed({"a": range(10, 13)}), packed({"b": range(20, 23)})], [1, 1], [3, 3], seed=0
    )
    everything = joined.take(range(6))
    some = joined.take([5, 0, 3])
    assert np.array_equal(some.tokens_RS, everything.tokens_RS[[5, 0, 3]])
    assert np.array_equal(some.loss_RS, everything.loss_RS[[5, 0, 3]])
    assert {*some.tokens_RS[:2, 0] // 10} == {1, 2}
