"""Sampling of the next token: greedy, or by numbers that depend on the request alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_bar.generation.engine import Request, Sampling

_WHOLE = 2**48  # what a probability of 1 is in the sums of them; finer than fp32 can tell


def uniform_numbers(requests: Sequence[Request], sampling: Sampling) -> torch.Tensor:
    """`[R, N]`: a number in [0, 1) for each request and new token, from a counter-based generator.

    Neither the batch that a request is in nor the layout has a part in it.
    """
    drawn = [
        np.random.Generator(
            np.random.Philox(np.random.SeedSequence([sampling.seed, *request.key]))
        ).random(sampling.max_new_tokens)
        for request in requests
    ]
    return torch.from_numpy(np.array(drawn).reshape(len(requests), sampling.max_new_tokens))


def choose(
    logits_RV: torch.Tensor, temperature: float, uniform_R: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each row, and its log-probability at the temperature (1 where that is 0).

    With a temperature, the token at which the cumulative probability passes the number drawn.
    """
    logits_RV = logits_RV.float()
    if temperature not in (0.0, 1.0):
        logits_RV = logits_RV / temperature
    logprobs_RV = logits_RV.log_softmax(-1)
    if temperature:
        assert uniform_R is not None
        # In whole numbers, whose sums are the same in whatever order a GPU takes them.
        shares_RV = logprobs_RV.double().exp_().mul_(_WHOLE).long()
        cumulative_RV = shares_RV.cumsum_(-1)
        drawn_R1 = (uniform_R[:, None] * cumulative_RV[:, -1:]).long()
        chosen_R1 = torch.searchsorted(cumulative_RV, drawn_R1, right=True)
        return chosen_R1[:, 0], logprobs_RV.gather(-1, chosen_R1)[:, 0]
    logprob_R, chosen_R = logprobs_RV.max(-1)
    return chosen_R, logprob_R
