"""Whatever is mixed: shares are kept to a document, and each document has its fair part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.data.mixture import natural_size, picks, shares, stratified
from megatron_bar.recipe.training import Source
from tests.properties import examples

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=5)
weights = st.floats(0.05, 20)


@examples
@given(st.data(), sizes, st.booleans(), st.integers(0, 3))
def test_a_mixture(data, sizes, weighted, seed):
    sources = [
        Source(path=f"{number}.jsonl", weight=data.draw(weights))
        if weighted
        else Source(path=f"{number}.jsonl", repeat=data.draw(st.integers(1, 3)))
        for number in range(len(sizes))
    ]
    total, parts = natural_size(sources, sizes), shares(sources, sizes)
    assert sum(parts) == pytest.approx(1) and min(parts) > 0
    if weighted:
        assert parts[0] / parts[-1] == pytest.approx(sources[0].weight / sources[-1].weight)
    for size, part, picked in zip(sizes, parts, picks(sources, sizes, seed), strict=True):
        times = np.bincount(picked, minlength=size)
        assert len(times) == size and times.max() - times.min() <= 1
        assert abs(len(picked) - part * total) <= 1


@examples
@given(sizes, st.floats(0.01, 1), st.integers(0, 3))
def test_a_sample_takes_the_same_share_of_each(sizes, fraction, seed):
    named = {str(number): size for number, size in enumerate(sizes)}
    for name, picked in stratified(named, fraction, seed).items():
        size = named[name]
        assert sorted(set(picked.tolist())) == picked.tolist()
        assert 0 <= picked[0] <= picked[-1] < size
        assert len(picked) == max(1, int(fraction * size + 0.5))
