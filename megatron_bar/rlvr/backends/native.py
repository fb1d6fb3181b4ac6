"""The loop of RLVR, top-down, on PyTorch and Megatron-Core alone.

A step: sample answers, score them, compare each with the others to its prompt, and make the better
ones likelier. NeMo-Aligner's trainer takes the same steps; this one also runs where that isn't
installed.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.rlvr.learner import Learner, Numbers

PRELOAD = None


def missing() -> None:
    """Nothing is, beside what all stages need."""


def prepare() -> None:
    """Nothing has to be."""


def fit(learner: Learner) -> None:
    """See `rlvr.backends.Backend`."""
    while learner.step < learner.settings.total_steps:
        if learner.end_step(_step(learner)):
            return


def _step(learner: Learner) -> Numbers:
    """One rollout and the updates from it; returns what there is to log."""
    # 1. Sample answers with the policy as it is: each data-parallel rank to its own prompts.
    mine = learner.generate(learner.asked())
    scoring = learner.rewards.score(mine)  # goes on, on threads, during what follows
    rollout = gathered(mine, learner.pad_id)

    # 2. Their log-probabilities: those that the ratio is to, and the reference's for the KL.
    scored = learner.score(rollout["response_tokens"])
    rollout |= {"logprobs": scored.logprobs_BT, "entropy": scored.entropy_BT}
    if learner.asks_reference:
        rollout["init_logprobs"] = learner.reference_logprobs(rollout["response_tokens"])

    # 3. Rewards, from 0 to 1.
    rollout |= gathered({"rewards": scoring.result()}, learner.pad_id)
    numbers = learner.describe(rollout)

    # 4. Advantages within each group; the groups that teach something, as optimizer steps.
    batches, of_tokens = learner.prepare_updates(rollout)

    # 5. Updates: the clipped ratio's loss, its mean over all tokens of the optimizer step.
    for rows in batches:
        numbers |= learner.apply(learner.gradients(rows))
    return numbers | of_tokens


def gathered(mine: dict[str, torch.Tensor], pad_id: int) -> dict[str, torch.Tensor]:
    """The parts of a rollout that the data-parallel ranks have, one below the other.

    Each rank has as many rows, which get as wide as the widest of all ranks.
    """
    group = parallel_state.get_data_parallel_group()
    whole = {}
    for name, rows in mine.items():
        if rows.ndim == 2:
            width = torch.tensor(rows.shape[1], device=rows.device)
            dist.all_reduce(width, op=dist.ReduceOp.MAX, group=group)
            value = pad_id if name == "response_tokens" else 0
            rows = torch.nn.functional.pad(
                rows, (0, int(width) - rows.shape[1]), value=value
            ).contiguous()
        parts = [torch.empty_like(rows) for _ in range(group.size())]
        dist.all_gather(parts, rows, group=group)
        whole[name] = torch.cat(parts)
    return whole
