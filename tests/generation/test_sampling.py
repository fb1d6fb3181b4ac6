"""How the next token is chosen, and what the choice depends on."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.sampling import choose, uniform_numbers

LOGITS = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()  # the second token can't come


@pytest.mark.parametrize(
    "drawn, token",
    [
        (0.0, 0),
        (0.499, 0),
        (0.501, 2),
        (0.799, 2),
        (0.801, 3),
        (1 - 1e-12, 3),
    ],
)
def test_a_number_falls_into_the_share_of_its_token(drawn, token):
    chosen, logprob = choose(LOGITS[None], 1.0, torch.tensor([drawn], dtype=torch.double))
    assert chosen.tolist() == [token]
    assert logprob.item() == pytest.approx(LOGITS[token].item())


def test_temperature_sharpens_and_the_log_probability_is_at_it():
    logits = torch.tensor([[0.0, math.log(2)]])
    _, logprob = choose(logits, 0.5, torch.tensor([0.9], dtype=torch.double))
    assert logprob.item() == pytest.approx(math.log(4 / 5))
    chosen, logprob = choose(logits, 0.0, None)
    assert chosen.tolist() == [1] and logprob.item() == pytest.approx(math.log(2 / 3))


def test_numbers_depend_on_seed_and_key_alone():
    requests = [Request([1], (0, 1)), Request([2], (1, 0)), Request([3], (0, 1))]
    first, second, third = uniform_numbers(requests, Sampling(5, frozenset(), 1.0, seed=7))
    assert first.tolist() == third.tolist() != second.tolist()
    # Fewer tokens are the same numbers, cut.
    shorter = uniform_numbers(requests[:1], Sampling(3, frozenset(), 1.0, seed=7))
    assert shorter[0].tolist() == first[:3].tolist()
    other = uniform_numbers(requests[:1], Sampling(5, frozenset(), 1.0, seed=8))
    assert other[0].tolist() != first.tolist()
