"""What of NeMo-Aligner is changed, and that our own mathematics agrees with its."""

from __future__ import annotations

import pytest

pytest.importorskip("nemo_aligner", reason="needs the extra nemo-aligner")
pytestmark = pytest.mark.distributed  # in a process of its own: importing it changes torch

from megatron_bar.launch import processes  # noqa: E402


def test_the_accommodations_are_exactly_these():
    processes.start(_accommodations).wait()


def _accommodations() -> None:
    from megatron_bar.rlvr.backends.nemo_aligner import accommodations

    assert accommodations.install() == ("no_trt_llm", "gloo_rebalance", "no_second_bar")
    assert accommodations.install() == ("no_trt_llm", "gloo_rebalance", "no_second_bar")


def test_baselines_masks_and_log_probabilities_are_those_of_nemo_aligner():
    processes.start(_mathematics).wait()


def _mathematics() -> None:
    import torch

    from megatron_bar.models.loss import linear_loss
    from megatron_bar.rlvr.backends.nemo_aligner import accommodations
    from megatron_bar.rlvr.conversations import Answer
    from megatron_bar.rlvr.objective import group_advantages, kl_to_reference
    from megatron_bar.rlvr.rollout import as_rollout
    from megatron_bar.runtime.distributed import process_groups
    from megatron_bar.runtime.layout import Layout

    accommodations.install()
    from nemo_aligner.utils.distributed import from_parallel_logits_to_logprobs
    from nemo_aligner.utils.ppo_utils import (
        calculate_kl_penalty,
        calculate_rloo_baseline,
        create_mask,
    )
    from nemo_aligner.utils.utils import masked_mean

    torch.manual_seed(0)
    rewards = torch.rand(12)
    groups = torch.arange(3).repeat_interleave(4)[:, None]
    theirs = rewards - calculate_rloo_baseline(groups, rewards, torch.ones(12))
    torch.testing.assert_close(group_advantages(rewards.view(3, 4), "rloo").flatten(), theirs)
    tokens = torch.randint(0, 50, (2, 7))
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]]).float()
    ours, start = torch.randn(2, 2, 6)
    theirs = masked_mean(calculate_kl_penalty(ours, start, use_absolute_kl=False), mask, dim=-1)
    torch.testing.assert_close(kl_to_reference(ours, start, mask), theirs)
    logits = torch.randn(2, 7, 50)
    with process_groups(Layout()):
        said = [Answer([9] * n, [True] * n, [-1.0] * n, True) for n in (5, 2)]
        rollout = as_rollout([[1, 2], [1, 2, 3]], [0, 1], said, 0)
        lengths = (rollout[name] for name in ("prompt_lengths", "response_lengths"))
        assert torch.equal(rollout["response_mask"], create_mask(torch.zeros(2, 6), *lengths))
        assert torch.equal(rollout["response_mask"], mask)
        theirs = from_parallel_logits_to_logprobs(logits.clone(), tokens, higher_stability=True)
        loss_T, _ = linear_loss(
            logits[:, :-1].flatten(0, 1),
            torch.eye(50),
            tokens[:, 1:].flatten(),
            50,
            torch.distributed.group.WORLD,
        )
        torch.testing.assert_close(-loss_T.view_as(theirs), theirs)
