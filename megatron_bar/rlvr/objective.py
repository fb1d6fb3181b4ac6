"""The objective of RLVR: advantages of groups, the clipped ratio, the mean over tokens.

The published settings are group-relative advantages that are only centred, a ratio clipped to
[1 - 0.2, 1 + 0.272], and a mean over all response tokens of the batch (facts of open-instruct's
`grpo_fast`, whose behaviour is matched).

Shapes: G groups (one a prompt), N samples of a prompt, B = G * N responses, S sequence. A log
probability at place t is that of token t + 1, so they are [B, S - 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_bar.recipe.schema import Rlvr

ADVANTAGES = ("centered", "grpo", "rloo")
_EPS = 1e-6  # keeps equal rewards, whose deviation is 0, from dividing 0 by 0


def group_advantages(rewards_GN: torch.Tensor, kind: str) -> torch.Tensor:
    """Advantage of each sample over the others of its prompt; `[G, N] -> [G, N]`.

    `centered`: reward minus the group's mean (published). `grpo`: that over the group's standard
    deviation (arXiv 2402.03300). `rloo`: reward minus the mean of the *other* samples, which is
    centred times N / (N - 1) (arXiv 2402.14740).
    """
    centered_GN = rewards_GN - rewards_GN.mean(-1, keepdim=True)
    if kind == "grpo":
        return centered_GN / (rewards_GN.std(-1, keepdim=True) + _EPS)
    if kind == "rloo":
        samples = rewards_GN.shape[-1]
        return centered_GN * (samples / (samples - 1))
    assert kind == "centered", kind
    return centered_GN


def nonzero_std_groups(rewards_GN: torch.Tensor) -> torch.Tensor:
    """Groups with anything to learn from: `[G, N] -> [G]`, False where all rewards are equal.
    """
    return (rewards_GN != rewards_GN[:, :1]).any(-1)


@dataclass(frozen=True)
class Advantages:
    """Advantages of responses, and which prompts to learn from and to rest."""

    advantages_B: torch.Tensor
    mask_BT: torch.Tensor  # of the tokens that count
    groups: torch.Tensor  # those to learn from, by number
    solved_G: torch.Tensor  # those to rest


def compute_advantages(
    scores_B: torch.Tensor,
    kl_B: torch.Tensor | None,
    mask_BT: torch.Tensor,
    stopped_B: torch.Tensor,
    settings: Rlvr,
) -> Advantages:
    """Advantages from scores in [0, 1], by the settings.

    `kl_B` is each response's KL divergence from the reference policy; `mask_BT` is 1 on response
    tokens. The scores alone decide which groups are learned from and which are solved.
    """
    samples = settings.samples_per_prompt
    rewards_B = scores_B * settings.reward_scale
    if kl_B is not None:
        rewards_B = rewards_B - settings.kl_coefficient * kl_B
    if settings.truncated == "mask":
        mask_BT = mask_BT * stopped_B[:, None]
    scores_GN = scores_B.view(-1, samples)
    kept_G = nonzero_std_groups(scores_GN) | (not settings.filter_zero_std)
    return Advantages(
        advantages_B=group_advantages(rewards_B.view(-1, samples), settings.advantage).flatten(),
        mask_BT=mask_BT,
        groups=kept_G.nonzero()[:, 0],
        solved_G=scores_GN.mean(-1) >= settings.no_resampling_pass_rate,
    )


def kl_to_reference(
    logprobs_BT: torch.Tensor, reference_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """`[B]`: the mean log ratio of policy to reference policy over a response's own tokens."""
    log_ratio_BT = (logprobs_BT - reference_logprobs_BT) * mask_BT
    return log_ratio_BT.sum(-1) / mask_BT.sum(-1).clamp_min(1)


def masked_mean(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The mean over the places that the mask has."""
    return values_BT[mask_BT.bool()].mean()


@dataclass(frozen=True)
class ClippedLoss:
    """Sums over response tokens; the caller divides by the batch's number of them."""

    loss: torch.Tensor
    clipped: torch.Tensor  # tokens whose ratio was clipped
    ratio_error: torch.Tensor  # |log ratio|, summed


def clipped_loss(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    advantages_B: torch.Tensor,
    mask_BT: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> ClippedLoss:
    """PPO's pessimistic ratio loss, clipped higher than lower (DAPO, arXiv 2503.14476).

    `mask_BT` is 1 on response tokens (T = S - 1). `advantages_B` is broadcast over a response's
    tokens.
    """
    log_ratio_BT = (logprobs_BT - old_logprobs_BT) * mask_BT
    ratio_BT = log_ratio_BT.exp()
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    advantages_BT = advantages_B[:, None]
    free_BT = -advantages_BT * ratio_BT
    held_BT = -advantages_BT * clipped_BT
    loss_BT = torch.maximum(free_BT, held_BT)
    return ClippedLoss(
        loss=(loss_BT * mask_BT).sum(),
        clipped=((held_BT > free_BT) * mask_BT).sum().detach(),
        ratio_error=(log_ratio_BT.abs() * mask_BT).sum().detach(),
    )
