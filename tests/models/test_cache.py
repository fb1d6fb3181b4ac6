"""Attention with a cache, row by row at positions of its own, against attention to whole rows."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.models.cache import RowCache

HEADS, KV_HEADS, WIDTH, LENGTH = 6, 2, 8, 12
PROMPTS = (5, 2, 5)  # tokens read at once; the first and the last row have the same prompt
SCALE = 0.3


def _whole(q_SND, k_SKD, v_SKD, angles_L11D, window):
    """One row's outputs, each position by itself."""
    cos_S1D, sin_S1D = angles_L11D[: len(q_SND), 0].cos(), angles_L11D[: len(q_SND), 0].sin()

    def rotated(x_SND):
        first, second = x_SND.chunk(2, dim=-1)
        return x_SND * cos_S1D + torch.cat((-second, first), -1) * sin_S1D

    q, k = rotated(q_SND), rotated(k_SKD).repeat_interleave(HEADS // KV_HEADS, dim=1)
    v = v_SKD.repeat_interleave(HEADS // KV_HEADS, dim=1)
    outputs = []
    for place in range(len(q)):
        seen = slice(0 if window is None else max(0, place + 1 - window), place + 1)
        weights = (torch.einsum("nd,snd->sn", q[place], k[seen]) * SCALE).softmax(0)
        outputs.append(torch.einsum("sn,snd->nd", weights, v[seen]).flatten())
    return torch.stack(outputs)


@pytest.mark.parametrize("window", [None, 3])
def test_rows_that_stand_at_one_position_see_what_they_would_alone(window):
    """They are computed without a mask, or with one for all of them."""
    torch.manual_seed(0)
    angles_L11D = torch.rand(LENGTH, 1, 1, WIDTH // 2).repeat(1, 1, 1, 2) * 3
    q_RSND, k_RSKD, v_RSKD = (
        torch.randn(2, LENGTH, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    expected = [_whole(q, k, v, angles_L11D, window) for q, k, v in zip(q_RSND, k_RSKD, v_RSKD)]
    cache = RowCache(2, LENGTH)
    for place in range(LENGTH):
        cache.decode([place, place], torch.device("cpu"))
        found = cache.attend(
            1, *(x[:, place][None] for x in (q_RSND, k_RSKD, v_RSKD)), angles_L11D, window, SCALE
        )
        torch.testing.assert_close(found[0], torch.stack([row[place] for row in expected]))


@pytest.mark.parametrize("window", [None, 3])
def test_prefill_and_decode_give_what_the_whole_row_gives(window):
    torch.manual_seed(0)
    angles_L11D = torch.rand(LENGTH, 1, 1, WIDTH // 2).repeat(1, 1, 1, 2) * 3
    rows = len(PROMPTS)
    q_RSND, k_RSKD, v_RSKD = (
        torch.randn(rows, LENGTH, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    for x in (q_RSND, k_RSKD, v_RSKD):
        x[2, :5] = x[0, :5]
    expected = [_whole(q, k, v, angles_L11D, window) for q, k, v in zip(q_RSND, k_RSKD, v_RSKD)]
    cache = RowCache(rows, LENGTH)

    def attend(*tensors):
        return cache.attend(1, *tensors, angles_L11D, window, SCALE)

    # Two prompts are read for three rows; the shorter one is padded by what comes after it.
    cache.prefill(5, rows=torch.tensor([2, 1, 0]), sources=torch.tensor([0, 1, 0]))
    read = attend(*(x[:2, :5].transpose(0, 1) for x in (q_RSND, k_RSKD, v_RSKD)))
    for row in (0, 1):
        torch.testing.assert_close(read[: PROMPTS[row], row], expected[row][: PROMPTS[row]])

    positions = list(PROMPTS)
    order = torch.arange(rows)
    for step in range(5):
        if step == 3:  # one row leaves, the others change places
            order = torch.tensor([2, 1])
            cache.keep(order)
        places = torch.tensor([positions[row] for row in order.tolist()])
        cache.decode(places.tolist(), places.device)
        found = attend(*(x[order, places][None] for x in (q_RSND, k_RSKD, v_RSKD)))
        for row, output in zip(order.tolist(), found[0]):
            torch.testing.assert_close(output, expected[row][positions[row]])
            positions[row] += 1
