"""The objective, against examples worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.objective import (
    Advantages,
    compute_advantages,
    group_advantages,
    importance_weights,
    kl_to_reference,
    mean_weights,
    nonzero_std_groups,
    policy_loss,
)

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 3.0, 3.0, 3.0], [4.0, 0.0, 0.0, 0.0]])


def test_centered_advantages_are_the_distance_from_the_groups_mean():
    expected = [[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [3.0, -1.0, -1.0, -1.0]]
    assert group_advantages(REWARDS, "centered").tolist() == expected


def test_rloo_compares_with_the_mean_of_the_others():
    # 4 against (0 + 0 + 0) / 3; 0 against (4 + 0 + 0) / 3.
    last = group_advantages(REWARDS, "rloo")[2].tolist()
    assert last == pytest.approx([4.0, -4 / 3, -4 / 3, -4 / 3])


def test_grpo_divides_by_the_standard_deviation():
    # Deviation of 4, 0, 0, 0 with Bessel's correction: sqrt((9 + 1 + 1 + 1) / 3) = 2.
    found = group_advantages(REWARDS, "grpo")
    assert found[2].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)
    assert found[1].tolist() == [0.0] * 4


def test_groups_with_equal_rewards_teach_nothing():
    assert nonzero_std_groups(REWARDS).tolist() == [True, False, True]


# Two prompts of two samples: one solved once, one solved twice; the first answer was cut.
SCORES = torch.tensor([1.0, 0.0, 1.0, 1.0])
STOPPED = torch.tensor([False, True, True, True])
MASK = torch.tensor([[0.0, 1.0, 1.0]] * 4)


def _advantages(kl: torch.Tensor | None = None, **settings) -> Advantages:
    return compute_advantages(SCORES, kl, MASK, STOPPED, Rlvr(samples_per_prompt=2, **settings))


def test_rewards_are_scaled_and_equal_groups_left_out():
    found = _advantages()
    assert found.advantages_B.tolist() == [5.0, -5.0, 0.0, 0.0]  # 10 and 0, less 5
    assert found.groups.tolist() == [0]
    assert found.mask_BT.tolist() == MASK.tolist()
    assert _advantages(reward_scale=1.0, filter_zero_std=False).groups.tolist() == [0, 1]


def test_solved_prompts_are_reported():
    assert _advantages().solved_G.tolist() == [False, True]
    assert _advantages(no_resampling_pass_rate=0.5).solved_G.tolist() == [True, True]


def test_divergence_is_taken_off_the_reward_and_not_off_the_score():
    found = _advantages(torch.tensor([2.0, 0.0, 4.0, 0.0]), kl_coefficient=0.5)
    # 10 - 1 and 0, less 4.5; 10 - 2 and 10, less 9
    assert found.advantages_B.tolist() == [4.5, -4.5, -1.0, 1.0]
    assert found.groups.tolist() == [0] and found.solved_G.tolist() == [False, True]
    assert _advantages(torch.ones(4)).advantages_B.tolist() == _advantages().advantages_B.tolist()


def test_divergence_is_the_mean_over_a_responses_own_tokens():
    ours = torch.tensor([[9.0, -1.0, -2.0], [9.0, 9.0, 9.0]])
    start = torch.tensor([[0.0, -2.0, -5.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert kl_to_reference(ours, start, mask).tolist() == [(1.0 + 3.0) / 2, 0.0]


def test_truncated_responses_can_be_masked():
    found = _advantages(truncated="mask")
    assert found.mask_BT.tolist() == [[0.0] * 3, *MASK[1:].tolist()]
    assert found.advantages_B.tolist() == [5.0, -5.0, 0.0, 0.0]  # they still count for the mean


@pytest.mark.parametrize(
    "ratio, advantage, loss, clipped",
    [
        (1.0, 2.0, -2.0, 0),
        (1.5, 2.0, -2 * 1.272, 1),  # a good token is raised to the upper clip only
        (0.5, 2.0, -1.0, 0),  # ... and pulled back up from anywhere
        (0.5, -2.0, 2 * 0.8, 1),  # a bad one is lowered to the lower clip only
        (1.5, -2.0, 3.0, 0),
    ],
)
def test_the_ratio_is_clipped_where_it_would_go_on_in_its_direction(
    ratio, advantage, loss, clipped
):
    old = torch.tensor([[-1.0]])
    found = policy_loss(
        old + math.log(ratio),
        old,
        torch.tensor([[advantage]]),
        torch.ones(1, 1),
        Rlvr(clip_low=0.2, clip_high=0.272),
    )
    assert found.loss.item() == pytest.approx(loss, rel=1e-6)
    assert found.clipped.item() == clipped
    assert found.ratio_error.item() == pytest.approx(abs(math.log(ratio)), abs=1e-6)


def test_masked_tokens_count_for_nothing_and_every_other_token_the_same():
    logprobs = torch.tensor([[-1.0, -2.0, -30.0], [-0.5, -9.0, -9.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    advantages = torch.tensor([[1.0], [-3.0]]).expand(2, 3)
    found = policy_loss(
        logprobs, logprobs.detach() * mask, advantages, mask, Rlvr(clip_low=0.2, clip_high=0.2)
    )
    assert found.loss.item() == pytest.approx(-1 - 1 + 3)
    found.loss.backward()
    # At ratio 1 the gradient by a log-probability is minus the advantage.
    assert logprobs.grad.tolist() == [[-1.0, -1.0, 0.0], [3.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "ratio, advantage, weight, clipped",
    [
        (1.0, 2.0, 1.0, 0),
        (1.5, 2.0, 1.272, 1),  # clipped, and yet it has a gradient
        (0.5, 2.0, 0.8, 1),  # ... on either side, whatever the advantage
        (1.5, -2.0, 1.272, 1),
    ],
)
def test_cispo_clips_the_weight_of_a_tokens_gradient(ratio, advantage, weight, clipped):
    """loss = -sg(clip(r)) A log p; so d loss / d log p = -clip(r) A, -1.272 * 2 in the second."""
    old = torch.tensor([[-1.0]])
    logprob = (old + math.log(ratio)).requires_grad_()
    found = policy_loss(
        logprob, old, torch.tensor([[advantage]]), torch.ones(1, 1), Rlvr(loss_type="cispo")
    )
    assert found.loss.item() == pytest.approx(-weight * advantage * (-1 + math.log(ratio)))
    assert found.clipped.item() == clipped
    found.loss.backward()
    assert logprob.grad.item() == pytest.approx(-weight * advantage)


def test_gspo_clips_the_ratio_of_whole_responses_and_counts_each_response_once():
    """Clipped to 0.95 and 1.08.

    Ratios 1.21 and 1: their geometric mean is 1.1, clipped to 1.08: loss -1.08 * 2 = -2.16.
    Ratio 0.9, advantage -1: clipped to 0.95, loss 0.95.
    Ratios 2, 1 and 0.5: the mean is 1, loss -3, and a token's gradient is -3 / 3 = -1.
    """
    old = torch.full((3, 4), -1.0)
    ratios = torch.tensor([[7.0, 1.21, 1.0, 7.0], [0.9, 7.0, 7.0, 7.0], [7.0, 2.0, 1.0, 0.5]])
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
    advantages = torch.tensor([[2.0], [-1.0], [3.0]]).expand(3, 4)
    logprobs = (old + ratios.log()).requires_grad_()
    found = policy_loss(
        logprobs, old, advantages, mask, Rlvr(loss_type="gspo", clip_low=0.05, clip_high=0.08)
    )
    assert found.loss.item() == pytest.approx(-2.16 + 0.95 - 3)
    assert found.clipped.item() == pytest.approx(2)
    assert found.ratio_error.item() == pytest.approx(math.log(1.1) - math.log(0.9))
    assert mean_weights(mask, "gspo").sum().item() == pytest.approx(3)  # responses
    found.loss.backward()
    expected = torch.zeros(3, 4)
    expected[2, 1:] = -1
    torch.testing.assert_close(logprobs.grad, expected)


def test_truncated_importance_weights_go_up_to_the_cap():
    """e^(-1 + 1.5) = 1.6487, e^(-1 + 0.5) = 0.6065; e^2 = 7.4 is more than the cap."""
    ours, theirs = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.5, -0.5, -3.0]])
    weights = importance_weights(ours, theirs, cap=2.0)
    assert weights[0].tolist() == pytest.approx([1.6487, 0.6065, 2.0], abs=1e-4)
    # At ratio 1 a token's loss is -A times its weight: -2 * (1.6487 + 0.6065 + 2).
    found = policy_loss(ours, ours, 2 * weights, torch.ones(1, 3), Rlvr())
    assert found.loss.item() == pytest.approx(-8.5105, abs=1e-4)
