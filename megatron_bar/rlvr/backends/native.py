"""The loop of RLVR, top-down, on PyTorch and Megatron-Core alone.

A step: sample answers, score them, compare each with the others to its prompt, and make the better
ones likelier. NeMo-Aligner's trainer takes the same steps; this one also runs where that isn't
installed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

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
    while learner.step < learner.settings.steps:
        if learner.end_step(_step(learner)):
            return


def _step(learner: Learner) -> Numbers:
    """One rollout and the updates from it; returns what there is to log."""
    seconds = _Seconds()

    # 1. Sample answers with the policy as it is: each data-parallel rank to its own prompts.
    with seconds.of("rollout"):
        mine = learner.generate(learner.asked())
        scoring = learner.rewards.score(mine)  # goes on, on threads, during what follows
    rollout = gathered(mine, learner.pad_id)

    # 2. Their log-probabilities: those that the ratio is to, and the reference's for the KL.
    with seconds.of("logprobs"):
        scored = learner.score(rollout["response_tokens"])
        rollout |= {"logprobs": scored.logprobs_BT, "entropy": scored.entropy_BT}
    if learner.asks_reference:
        with seconds.of("reference"):
            rollout["init_logprobs"] = learner.reference_logprobs(rollout["response_tokens"])

    # 3. Rewards, from 0 to 1.
    with seconds.of("verification"):
        rewards = scoring.result()
    rollout |= gathered({"rewards": rewards}, learner.pad_id)
    numbers = learner.describe(rollout)

    # 4. Advantages within each group; the groups that teach something, as optimizer steps.
    batches, of_tokens = learner.prepare_updates(rollout)

    # 5. Updates: the clipped ratio's loss, its mean over all tokens of the optimizer step.
    with seconds.of("update"):
        for rows in batches:
            numbers |= learner.apply(learner.gradients(rows))
    return numbers | of_tokens | seconds.of_the_slowest_rank()


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
                rows, (0, int(width) - rows.shape[1]), value=value).contiguous()
        parts = [torch.empty_like(rows) for _ in range(group.size())]
        dist.all_gather(parts, rows, group=group)
        whole[name] = torch.cat(parts)
    return whole


class _Seconds:
    """How long the parts of a step take."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        torch.cuda.synchronize()
        started = time.monotonic()
        yield
        torch.cuda.synchronize()
        self.taken[f"seconds_{part}"] = time.monotonic() - started

    def of_the_slowest_rank(self) -> dict[str, float]:
        """All ranks call this, with the same parts."""
        seconds = torch.tensor(list(self.taken.values()), device=torch.cuda.current_device())
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        return dict(zip(self.taken, seconds.tolist()))
