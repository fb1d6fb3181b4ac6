"""Counts of the tokens in rows."""

from __future__ import annotations

import numpy as np

from megatron_bar.data.rows import Rows

_MOST = 2**27  # tokens that are looked at; they take about a minute
_AT_ONCE = 256  # rows in memory


def count_tokens(rows: Rows, vocab_size: int, most: int = _MOST) -> np.ndarray:
    """Counts `[V]` of the tokens in `rows`, without padding.

    Of more than `most` tokens only as many are counted, in rows that are spread evenly.
    """
    counts_V = np.zeros(vocab_size, np.int64)
    if not len(rows):
        return counts_V
    length = rows.take([0]).tokens_RS.shape[1]
    looked_at = min(len(rows), max(1, most // length))
    chosen = np.linspace(0, len(rows) - 1, looked_at).astype(np.int64)
    for start in range(0, looked_at, _AT_ONCE):
        some = rows.take(chosen[start : start + _AT_ONCE])
        counts_V += np.bincount(some.tokens_RS[some.documents_RS > 0], minlength=vocab_size)
    return counts_V
