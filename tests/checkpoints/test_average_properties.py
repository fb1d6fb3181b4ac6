"""Whatever is averaged: what all agree on keeps its bits, and bands don't show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from megatron_bar.checkpoints.average import mean_blocks
from tests.properties import examples

numbers = st.floats(-1e4, 1e4, width=32)


@st.composite
def models(draw) -> tuple[list[torch.Tensor], list[float]]:
    """A tensor of each model, partly the same, and what the models weigh."""
    count, rows = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    drawn = draw(arrays.arrays(np.float32, (count, rows, 3), elements=numbers))
    same = draw(arrays.arrays(np.bool_, (rows, 3)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    tensors = torch.from_numpy(np.where(same, drawn[:1], drawn)).to(dtype)
    return list(tensors), draw(st.lists(st.floats(0.1, 9), min_size=count, max_size=count))


def mean_of(tensors: list[torch.Tensor], weights: list[float], rows: int) -> torch.Tensor:
    """The mean, computed in bands of so many rows."""
    bands = zip(*(tensor.split(rows) for tensor in tensors))
    blocks = mean_blocks(bands, weights, "attention", "x", {})
    return torch.cat([block.float() for block in blocks]).reshape(tensors[0].shape)


@pytest.mark.slow
@examples
@given(models(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_mean(drawn, rows, random):
    tensors, weights = drawn
    whole = mean_of(tensors, weights, len(tensors[0]))
    assert torch.equal(mean_of(tensors, weights, rows), whole)
    assert torch.equal(mean_of(tensors, [2 * weight for weight in weights], rows), whole)
    stacked = torch.stack(tensors).float()
    agreed = (stacked == stacked[0]).all(0)
    if tensors[0].dtype == torch.float32:
        assert torch.equal(whole[agreed], stacked[0][agreed])
    else:  # what is written is rounded to 16 bits again
        assert torch.equal(whole[agreed].bfloat16(), tensors[0][agreed])
    expected = np.average(stacked.double().numpy(), 0, weights)
    scale = float(stacked.abs().max()) + 1e-30
    assert whole.numpy() == pytest.approx(expected, abs=1e-6 * scale)
    order = random.sample(range(len(tensors)), len(tensors))
    other = mean_of([tensors[at] for at in order], [weights[at] for at in order], rows)
    assert other.numpy() == pytest.approx(whole.numpy(), abs=1e-6 * scale)
