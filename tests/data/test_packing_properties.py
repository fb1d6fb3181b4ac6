"""Whatever is packed: nothing is lost, doubled or seen by its neighbour, and no room is wasted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.data.packing import Example, Examples, pack, pack_texts
from megatron_bar.runtime.errors import BarError
from tests.data.test_packing import documents
from tests.properties import examples

lengths = st.lists(st.integers(1, 24), min_size=1, max_size=25)
row_length = st.integers(2, 16)


@st.composite
def conversations(draw) -> list[Example]:
    """Each token is another number, so that none can be mistaken for another."""
    made, first = [], 1
    for length in draw(lengths):
        mask = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        made.append(Example(list(range(first, first + length)), mask))
        first += length
    return made


@pytest.mark.slow
@examples
@given(
    st.lists(conversations(), min_size=1, max_size=3),
    row_length,
    st.sampled_from(["truncate", "drop"]),
)
def test_packed_conversations(sources, length, overlong):
    found = {str(number): Examples(made) for number, made in enumerate(sources)}
    expected = []
    for number, made in enumerate(sources):
        for example in made:
            mask = [False, *example.loss_mask[1:length]]
            if any(mask) and (overlong == "truncate" or len(example.ids) <= length):
                expected.append((number, example.ids[:length], mask))
    if not expected:
        with pytest.raises(BarError, match="anything to learn"):
            pack(found, length, overlong)
        return
    packed = pack(found, length, overlong)
    rows = packed.take(range(len(packed)))
    sources_of = [
        int(row[documents_S == number][0])
        for row, documents_S in zip(rows.sources_RS, rows.documents_RS)
        for number in range(1, documents_S.max() + 1)
    ]
    assert sorted(zip(sources_of, *zip(*documents(rows)))) == sorted(expected)
    assert packed.report.supervised == rows.loss_RS.sum() == sum(sum(m) for *_, m in expected)
    assert not rows.loss_RS[rows.documents_RS == 0].any()
    # No two rows would fit into one: what any best fit keeps to.
    used = np.sort((rows.documents_RS > 0).sum(axis=1))
    assert len(used) == 1 or used[0] + used[1] > length


@examples
@given(lengths, row_length)
def test_joined_texts(sizes, length):
    texts = [np.arange(100 * number, 100 * number + size) for number, size in enumerate(sizes, 1)]
    rows = pack_texts(texts, length)
    tokens, numbers = rows.tokens_RS.reshape(-1), rows.documents_RS.reshape(-1)
    total = sum(sizes)
    assert tokens[:total].tolist() == np.concatenate(texts).tolist() and not numbers[total:].any()
    assert len(rows) == -(-total // length)
    learned = {
        (int(row[at - 1]), int(row[at]))
        for row, loss in zip(rows.tokens_RS, rows.loss_RS)
        for at in np.flatnonzero(loss)
    }
    # A token is learned from the one before it, of the same text and row.
    assert learned == {
        (int(text[at - 1]), int(text[at]))
        for start, text in _placed(texts)
        for at in range(1, len(text))
        if (start + at) % length
    }


def _placed(texts):
    start = 0
    for text in texts:
        yield start, text
        start += len(text)
