"""Off-policy by one step: servers answer the next prompts while the policy learns from the last.

The rollout that step n learns from was generated with the weights that step n - 1 began with. The
ratio of the objective is to the policy before the step's first update, and truncated importance
weights correct what lies between that and what generated (decoupled PPO, arXiv 2505.24298).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.generation.waiting import in_background, wait_for
from megatron_bar.rlvr.conversations import Answer
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import first_of_ranks
from megatron_bar.runtime.errors import BarError

Found = tuple[list[Answer], float]
Find = Callable[[], Found]


class PendingRollout:
    """Answers that servers are giving, asked by a thread of the rank that asks.

    `alone` finds them without other ranks, so that the policy can learn meanwhile; as in
    `OpenAIEngine` the first rank of a model-parallel group does it. `together` does the same with
    all ranks. Both tell how many seconds servers took.
    """

    def __init__(self, alone: Find, together: Find) -> None:
        self._together = together
        self._group = parallel_state.get_model_parallel_group()
        self._asked: Future[Found] | None = None
        if self._group.rank() == 0:
            self._asked = in_background(alone)

    def result(self) -> Found:
        """The answers, and the seconds that servers took.

        Every rank calls this. Where a server failed one of them, all ask again, as the engine does
        when nothing is ahead. Raises BarError if that fails too.
        """
        fault = None
        answers: list[Found | None] = [None]
        try:
            answers = [wait_for(None if self._asked is None else self._asked.result)]
        except BarError as error:
            fault = str(error)
        if fault := first_of_ranks(fault):
            say(f"{fault}; the rollout is asked for again")
            return self._together()
        dist.broadcast_object_list(answers, group=self._group, group_src=0)
        (found,) = answers
        assert found is not None
        return found
