"""Off-policy by one step: servers answer the next prompts while the policy learns from the last.

The rollout that step n learns from was generated with the weights that step n - 1 began with. The
ratio of the objective is to the policy before the step's first update, and truncated importance
weights correct what lies between that and what generated (decoupled PPO, arXiv 2505.24298).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.generation.engine import Request, Response, Sampling
from megatron_bar.generation.openai_engine import OpenAIEngine
from megatron_bar.generation.waiting import wait_for
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import first_of_ranks
from megatron_bar.runtime.errors import BarError


class PendingRollout:
    """Requests that servers are answering, asked by a thread of the rank that asks.

    The thread takes no part in what ranks do together, so that the policy can learn meanwhile. As
    in `OpenAIEngine` the first rank of a model-parallel group asks.
    """

    def __init__(
        self, engine: OpenAIEngine, requests: Sequence[Request], sampling: Sampling
    ) -> None:
        self.engine, self.requests, self.sampling = engine, requests, sampling
        self._group = parallel_state.get_model_parallel_group()
        self._asked: Future[tuple[list[Response], float]] | None = None
        if self._group.rank() == 0:
            threads = ThreadPoolExecutor(1, "rollout")
            self._asked = threads.submit(self._ask)
            threads.shutdown(wait=False)

    def _ask(self) -> tuple[list[Response], float]:
        started = time.monotonic()
        responses = self.engine.ask(self.requests, self.sampling)
        return responses, time.monotonic() - started

    def result(self) -> tuple[list[Response], float]:
        """The responses, in the order of the requests, and the seconds that servers took.

        Every rank calls this. Where a server failed one of them, all ask again, as the engine does
        when nothing is ahead. Raises BarError if that fails too.
        """
        fault = None
        answers: list[Any] = [None]
        try:
            answers = [wait_for(self._asked and self._asked.result)]
        except BarError as error:
            fault = str(error)
        if fault := first_of_ranks(fault):
            say(f"{fault}; the rollout is asked for again")
            started = time.monotonic()
            responses = self.engine.generate(self.requests, self.sampling)
            return responses, time.monotonic() - started
        dist.broadcast_object_list(answers, group=self._group, group_src=0)
        return answers[0]
