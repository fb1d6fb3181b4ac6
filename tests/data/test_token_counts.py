"""Tokens of rows are counted without padding."""

from __future__ import annotations

import numpy as np

from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.data.token_counts import count_tokens


def _rows(tokens, documents):
    tokens_RS = np.array(tokens, np.int32)
    return PackedRows(
        tokens_RS,
        tokens_RS > 0,
        np.array(documents, np.int32),
        np.zeros_like(tokens_RS, np.int16),
        PackReport(),
    )


def test_every_token_of_a_document_counts():
    rows = _rows([[3, 3, 0, 1], [0, 2, 0, 0]], [[1, 1, 2, 2], [1, 1, 0, 0]])
    assert count_tokens(rows, 5).tolist() == [2, 1, 1, 2, 0]
    assert count_tokens(rows.take([]), 5).tolist() == [0] * 5


def test_of_many_rows_some_are_looked_at_from_first_to_last():
    rows = _rows(np.arange(1000)[:, None].repeat(2, 1), np.ones((1000, 2)))
    counts = count_tokens(rows, 1000, most=1200)
    assert counts.sum() == 1200 and counts[0] == counts[999] == 2
    assert np.flatnonzero(counts[400:600]).size > 100
