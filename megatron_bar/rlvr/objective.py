"""The objective of RLVR: advantages of groups, the clipped ratio, the mean over tokens.

The published settings are group-relative advantages that are only centred, a ratio clipped to
[1 - 0.2, 1 + 0.272], and a mean over all response tokens of the batch (facts of open-instruct's
`grpo_fast`, whose behaviour is matched). The recipe may choose others, by their published formulas.

Shapes: G groups (one a prompt), N samples of a prompt, B = G * N responses, S sequence. A log
probability at place t is that of token t + 1, so they are [B, S - 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_bar.recipe.training import Rlvr

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
    """Groups with anything to learn from: `[G, N] -> [G]`, False where all rewards are equal."""
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


def importance_weights(
    logprobs_BT: torch.Tensor, rollout_logprobs_BT: torch.Tensor, cap: float
) -> torch.Tensor:
    """Truncated importance sampling: `min(p / q, cap)` of each token; `-> [B, T]`.

    The trainer gives a token probability p before the step's first update, what sampled it gave it
    q: other rounding, or weights of a step ago. The weighted gradient is that of samples from p, in
    expectation, but for the cap, which bounds its variance (Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training"; decoupled PPO has the same weight,
    arXiv 2505.24298).
    """
    return (logprobs_BT - rollout_logprobs_BT).exp().clamp_max(cap)


def mean_weights(mask_BT: torch.Tensor, loss_type: str) -> torch.Tensor:
    """`[B, T]`: how much each token counts in the mean that the loss is.

    All response tokens count the same, but with `gspo` all responses do.
    """
    if loss_type == "gspo":
        return mask_BT / mask_BT.sum(-1, keepdim=True).clamp_min(1)
    return mask_BT


@dataclass(frozen=True)
class PolicyLoss:
    """Sums, weighted by `mean_weights`; the caller divides by the sum of these of all rows."""

    loss: torch.Tensor
    clipped: torch.Tensor  # tokens whose ratio was clipped
    ratio_error: torch.Tensor  # |log ratio|


def policy_loss(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    settings: Rlvr,
) -> PolicyLoss:
    """The loss of `loss_type`; r is the ratio of new to old probability, A the advantage.

    `dapo`: `-min(r A, clip(r) A)` of each token, PPO's pessimistic loss, clipped higher than lower
    (arXiv 2503.14476). `cispo`: `-sg(clip(r)) A log p` of each token, where sg stops the gradient,
    so that a clipped token still teaches (MiniMax-M1, arXiv 2506.13585). `gspo`: that of `dapo`,
    with the geometric mean of the ratios of a whole response in the place of each of its tokens'
    (arXiv 2507.18071).
    """
    weights_BT = mean_weights(mask_BT, settings.loss_type)
    log_ratio_BT = (logprobs_BT - old_logprobs_BT) * mask_BT
    if settings.loss_type == "gspo":
        log_ratio_BT = (log_ratio_BT * weights_BT).sum(-1, keepdim=True) * mask_BT
    ratio_BT = log_ratio_BT.exp()
    held_BT = ratio_BT.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    if settings.loss_type == "cispo":
        loss_BT = -held_BT.detach() * advantages_BT * logprobs_BT
        is_clipped_BT = held_BT != ratio_BT
    else:
        loss_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * held_BT)
        is_clipped_BT = loss_BT > -advantages_BT * ratio_BT
    return PolicyLoss(
        loss=(loss_BT * weights_BT).sum(),
        clipped=(is_clipped_BT * weights_BT).sum().detach(),
        ratio_error=(log_ratio_BT.abs() * weights_BT).sum().detach(),
    )
