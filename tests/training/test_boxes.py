"""A range of a tensor's numbers is made up of boxes."""

from __future__ import annotations

import itertools

import pytest
import torch

from megatron_bar.training.boxes import boxes


@pytest.mark.parametrize("shape, most", [((7,), 1), ((3, 5), 3), ((2, 3, 4), 5), ((5, 1), 1)])
def test_every_range_is_made_up_of_few_boxes_in_order(shape, most):
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    for start, end in itertools.combinations(range(numbers.numel() + 1), 2):
        found = list(boxes(shape, start, end))
        parts = [
            numbers[tuple(slice(o, o + s) for o, s in zip(offset, size))].reshape(-1)
            for offset, size in found
        ]
        assert torch.equal(torch.cat(parts), torch.arange(start, end)) and len(found) <= most
    assert list(boxes(shape, 2, 2)) == []
