"""Rewards: what the verifiers say of responses, found while the policy computes.

A verifier that fails on a response ends no run: the response earns nothing, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.generation.waiting import wait_for
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.rlvr.rollout import Rollout
from megatron_bar.rlvr.step_seconds import StepSeconds
from megatron_bar.runtime.stopping import CutShort
from megatron_bar.verifiers.failures import Failures


class Rewards:
    """Scores responses on threads, each from 0 to 1."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        decode: Callable[[list[int]], str],
        settings: Rlvr,
        seconds: StepSeconds,
    ) -> None:
        self.prompts = prompts
        self.decode = decode
        self.seconds = seconds
        self.cut_earn_nothing = settings.truncated == "zero"
        self.threads = ThreadPoolExecutor(settings.verifier_workers)
        self.failures = Failures()  # of environments too
        self._failed_before = 0

    def score(self, rollout: Rollout) -> PendingRewards:
        """Begin to score a data-parallel rank's responses; every rank calls this.

        Ranks of one model-parallel group hold the same responses: each scores its part of them.
        """
        group = parallel_state.get_model_parallel_group()
        rows = list(
            zip(
                *(
                    rollout[name].tolist()
                    for name in (
                        "prompt_ids",
                        "response_tokens",
                        "response_mask",
                        "response_lengths",
                        "is_end",
                        "given_rewards",
                    )
                )
            )
        )
        tasks = [
            self.threads.submit(self._score, *row) for row in rows[group.rank() :: group.size()]
        ]
        return PendingRewards(tasks, len(rows), group, self.seconds)

    def _score(
        self,
        prompt: int,
        tokens: list[int],
        mask: list[float],
        end: int,
        stopped: bool,
        given: float,
    ) -> float:
        if given >= 0:
            return given
        if not stopped and self.cut_earn_nothing:
            return 0.0
        # The last reply: back to the last token that isn't the policy's own.
        start = end
        while start > 1 and mask[start - 2]:
            start -= 1
        return self.failures.score(
            self.prompts[prompt].score, self.decode(tokens[start : end - stopped])
        )

    def failed(self) -> int:
        """The responses that a verifier or an environment failed on since the last call.

        Those of all ranks, which all call this.
        """
        count = torch.tensor(
            self.failures.count - self._failed_before, device=torch.cuda.current_device()
        )
        self._failed_before = self.failures.count
        dist.all_reduce(count)
        return int(count)


@dataclass(frozen=True)
class PendingRewards:
    """Rewards that are being found."""

    tasks: list[Future[float]]  # of this rank's part
    count: int  # of all ranks' parts
    group: dist.ProcessGroup
    seconds: StepSeconds

    def result(self) -> torch.Tensor:
        """Wait for all of them: `[B]`, the same on every rank of the model-parallel group.

        All ranks call this. Raises CutShort, on all of them, where the stage is asked to stop
        before.
        """
        rewards_B = torch.zeros(self.count, device=torch.cuda.current_device())
        with self.seconds.of("verification"):
            try:
                found: list[float] = wait_for(lambda: [task.result() for task in self.tasks]) or []
            except CutShort:
                for task in self.tasks:
                    task.cancel()  # those at work come to their limits
                raise
        mine = torch.tensor(found, device=rewards_B.device)
        rewards_B[self.group.rank() :: self.group.size()] = mine
        dist.all_reduce(rewards_B, group=self.group)
        return rewards_B
