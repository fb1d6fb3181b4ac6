"""Generation by servers that speak OpenAI's completions API and hold the model's weights."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.generation.engine import Request, Response, Sampling
from megatron_bar.generation.openai_api import OpenAIApi, ServerFault
from megatron_bar.generation.waiting import map_in_background, wait_for
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import first_of_ranks
from megatron_bar.runtime.errors import BarError


@dataclass(frozen=True)
class Asking:
    """The way in which servers are asked."""

    at_once: int  # requests under way at each server for each data-parallel rank
    max_sequence_length: int  # the model's
    seeds: bool  # whether each request brings one
    answer_seconds: float  # after so long a server is given up
    log: Path | None = None  # what a server of our own prints


class OpenAIEngine:
    """A RolloutEngine.

    The first rank of a model-parallel group asks, and tells the others. What a server fails to
    answer others are asked; what none answers is asked once more after `renew`, which every rank
    calls, has brought them back, and tells their addresses. The same requests get the same answers
    as far as the servers see to it: each request brings a seed of its own, if they take seeds.
    """

    def __init__(
        self, addresses: Sequence[str], asking: Asking, renew: Callable[[], Sequence[str]]
    ) -> None:
        self.addresses, self.asking, self.renew = addresses, asking, renew

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Response]:
        """See RolloutEngine. Raises BarError if servers fail twice, and for a prompt that fills
        all of the model's positions.
        """
        self._check_room(requests)
        group = parallel_state.get_model_parallel_group()
        round_ = _Round(requests, sampling, self.asking, advance)
        if fault := self._ask(round_, group):
            say(f"{fault}; what is missing is asked again")
            self.addresses = self.renew()
            if fault := self._ask(round_, group):
                told = self.asking.log and f"; what vLLM printed is in {self.asking.log}"
                raise BarError(fault + (told or ""))
        answers: list[Any] = [round_.answers]
        dist.broadcast_object_list(answers, group=group, group_src=0)
        return [answers[0][index] for index in range(len(requests))]

    def ask(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Return what `generate` does, on this rank alone, from any thread, and asks nothing again.

        Raises BarError if something stays without an answer, and for a prompt that is too long.
        """
        self._check_room(requests)
        round_ = _Round(requests, sampling, self.asking, lambda done: None)
        if fault := round_.ask(self.addresses):
            raise BarError(fault)
        return [round_.answers[index] for index in range(len(requests))]

    def _check_room(self, requests: Sequence[Request]) -> None:
        longest = max((len(request.prompt) for request in requests), default=0)
        if longest >= self.asking.max_sequence_length:
            raise BarError(
                f"a prompt has {longest} tokens, and the model's "
                f"{self.asking.max_sequence_length} positions leave no room to answer; "
                "leave out prompts that long"
            )

    def _ask(self, round_: _Round, group: dist.ProcessGroup) -> str | None:
        """Ask for all that is missing; on every rank what is wrong on one, if something is."""
        ask = functools.partial(round_.ask, self.addresses) if group.rank() == 0 else None
        return first_of_ranks(wait_for(ask))


@dataclass
class _Round:
    """Requests, and the answers that there are already."""

    requests: Sequence[Request]
    sampling: Sampling
    asking: Asking
    advance: Callable[[int], None]
    answers: dict[int, Response] = field(default_factory=dict)

    def ask(self, addresses: Sequence[str]) -> str | None:
        """Ask the servers there for what is missing; the fault of one, if something still is."""
        faults: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            apis = [OpenAIApi(address, self.asking.answer_seconds) for address in addresses]
            for api in apis:
                stack.callback(api.close)
            answer = functools.partial(self._answer, apis, faults)
            # Once more for each server, since others take over the share of one that fails.
            for _ in apis:
                map_in_background(answer, self._missing(), self.asking.at_once * len(apis))
        if self._missing():
            return next(iter(faults.values()))
        for fault in faults.values():
            say(f"{fault}; other servers answered for it")
        return None

    def _missing(self) -> list[int]:
        return [index for index in range(len(self.requests)) if index not in self.answers]

    def _answer(self, apis: Sequence[OpenAIApi], faults: dict[str, str], index: int) -> None:
        """Ask one that hasn't failed; a fault of its is added to `faults`."""
        living = [api for api in apis if api.address not in faults]
        if not living:
            return
        # Ranks start at other servers.
        api = living[(parallel_state.get_data_parallel_rank() + index) % len(living)]
        request = self.requests[index]
        most = self.sampling.longest(request, self.asking.max_sequence_length)
        seed = request_seed(request, self.sampling.seed) if self.asking.seeds else None
        try:
            self.answers[index] = api.complete(request, self.sampling, most, seed)
            self.advance(1)
        except ServerFault as fault:
            faults.setdefault(api.address, str(fault))


def request_seed(request: Request, seed: int) -> int:
    """31 bits that depend on the seed and the request's key alone."""
    text = json.dumps([seed, *request.key])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
