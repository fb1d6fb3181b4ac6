"""Generation with a key-value cache, in the processes that hold the model, in any layout.

Shapes: R rows that are computed together, Q requests, N new tokens, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.communication_utils import (
    recv_from_prev_pipeline_rank_,
    send_to_next_pipeline_rank,
)

from megatron_bar.generation.engine import Request, Response, Sampling
from megatron_bar.generation.sampling import choose, uniform_numbers
from megatron_bar.models.cache import RowCache
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.runtime.errors import BarError

# Rows that have ended wait until there are so many of them (a share of all), since reading the
# next prompts costs a pass of its own.
_REFILL_SHARE = 1 / 8


class MegatronEngine:
    """Generates with the model itself; matches transformers' `generate` token for token.

    `model` computes without sequence parallelism, in eval mode. Ranks of one model-parallel group
    call `generate` with the same requests and get the same responses; data-parallel ranks call it
    with requests of their own, at the same time, since experts may be spread over them.
    `batch_size` requests are under way at once: as some end, the next ones take their places.
    """

    def __init__(self, model: LanguageModel, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Response]:
        """See RolloutEngine. Raises BarError for a prompt that fills all of the model's positions.
        """
        longest = max((len(request.prompt) for request in requests), default=0)
        if longest >= self.model.max_sequence_length:
            raise BarError(f"a prompt has {longest} tokens, and the model's "
                           f"{self.model.max_sequence_length} positions leave no room to answer; "
                           "leave out prompts that long")
        return _Run(self.model, requests, sampling, self.batch_size).finish(advance)


class _Run:
    """Requests on their way through the rows.

    A row holds a request, the token to feed next and its position. Reading a prompt leaves out its
    last token, which is the first to be fed; so every pass over the rows yields a token of each.
    Request number Q stands for none: rows without a request compute, and nobody looks.
    """

    def __init__(
        self, model: LanguageModel, requests: Sequence[Request], sampling: Sampling, batch_size: int
    ) -> None:
        self.model, self.requests, self.sampling = model, requests, sampling
        # Prompts of like length are read together, and those of one prompt stay side by side.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        self.waiting = deque(order)
        self.device = torch.device(torch.cuda.current_device())
        nobody = len(requests)
        # The tokens of each request and its response, at most.
        ends = [len(request.prompt) + sampling.longest(request, model.max_sequence_length)
                for request in requests]
        rows, length = self._all_reduce_max(min(batch_size, nobody), max(ends, default=1))
        self.free = list(range(rows))
        self.cache = RowCache(rows, length)
        self.stops = torch.tensor(sorted(sampling.stop_ids), device=self.device)
        self.request_R = self._rows_of(rows, nobody)
        self.token_R = self._rows_of(rows, 0)
        self.position_R = self._rows_of(rows, 0)
        self.prompt_R = self._rows_of(rows, 1)  # its length
        self.end_R = self._rows_of(rows, 0)  # of prompt and response, at most
        self.longest = 1  # of all rows, with the token to feed
        self.end_Q = torch.tensor(ends, device=self.device)
        self.tokens_QN = self._rows_of(nobody + 1, 0)[:, None].repeat(1, sampling.max_new_tokens)
        self.logprobs_QN = self.tokens_QN.float()
        self.count_Q = self._rows_of(nobody + 1, 0)
        if sampling.temperature:
            self.uniform_QN = torch.zeros_like(self.tokens_QN, dtype=torch.double)
            self.uniform_QN[:nobody] = uniform_numbers(requests, sampling)

    def _rows_of(self, count: int, value: int) -> torch.Tensor:
        return torch.full((count,), value, device=self.device)

    def finish(self, advance: Callable[[int], None]) -> list[Response]:
        """Generate until all requests are answered, on all ranks that share experts."""
        while True:
            admitted = self._admit()
            prompts = list(dict.fromkeys(tuple(self.requests[i].prompt[:-1]) for _, i in admitted))
            count, length, busy, waiting = self._all_reduce_max(
                len(prompts), max(map(len, prompts), default=0),
                self.cache.rows - len(self.free), len(self.waiting),
            )
            if length:
                self._read(prompts, admitted, count, length)
            if not busy:
                return self._responses()
            if not waiting and busy <= self.cache.rows // 2:
                self._shrink(busy)
            advance(self._step())

    def _all_reduce_max(self, *numbers: int) -> list[int]:
        """The largest of each over the ranks that share experts: these compute in step."""
        group = parallel_state.get_expert_tensor_and_model_parallel_group()
        if group.size() == 1:
            return list(numbers)
        found = torch.tensor(numbers, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
        return found.tolist()

    def _admit(self) -> list[tuple[int, int]]:
        """Give free rows to waiting requests, if it's time to; returns pairs of them."""
        if len(self.free) < _REFILL_SHARE * self.cache.rows:
            return []
        count = min(len(self.free), len(self.waiting))
        admitted = [(self.free.pop(), self.waiting.popleft()) for _ in range(count)]
        if admitted:
            rows, indices = (torch.tensor(x, device=self.device) for x in zip(*admitted))
            prompts = [self.requests[i].prompt for _, i in admitted]
            lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
            self.request_R[rows] = indices
            self.token_R[rows] = torch.tensor([p[-1] for p in prompts], device=self.device)
            self.position_R[rows] = lengths - 1
            self.prompt_R[rows] = lengths
            self.end_R[rows] = self.end_Q[indices]
            self.longest = max(self.longest, *map(len, prompts))
        return admitted

    def _read(
        self,
        prompts: list[tuple[int, ...]],
        admitted: list[tuple[int, int]],
        count: int,
        length: int,
    ) -> None:
        """Fill the cache with `prompts`, each once; `count` and `length` as all ranks have them."""
        tokens = torch.zeros(count, length, dtype=torch.long)
        for row_S, prompt in zip(tokens, prompts):
            row_S[: len(prompt)] = torch.tensor(prompt)
        place = {prompt: i for i, prompt in enumerate(prompts)}
        sources = [place[tuple(self.requests[i].prompt[:-1])] for _, i in admitted]
        self.cache.prefill(
            length,
            torch.tensor([row for row, _ in admitted], dtype=torch.long, device=self.device),
            torch.tensor(sources, dtype=torch.long, device=self.device),
        )
        self._forward(tokens.to(self.device))

    def _shrink(self, rows: int) -> None:
        """Go on with `rows` rows, all that have a request among them."""
        free = set(self.free)
        kept = [row for row in range(self.cache.rows) if row not in free]
        kept += self.free[: rows - len(kept)]
        self.free = [new for new, old in enumerate(kept) if old in free]
        index = torch.tensor(kept, device=self.device)
        self.cache.keep(index)
        self.request_R, self.token_R = self.request_R[index], self.token_R[index]
        self.position_R, self.prompt_R = self.position_R[index], self.prompt_R[index]
        self.end_R = self.end_R[index]

    def _step(self) -> int:
        """One token of each row; returns how many requests are answered now."""
        self.cache.decode(self.position_R, self.longest)
        logits_RV = self._forward(self.token_R[:, None])
        nobody = len(self.requests)
        nth_R = self.position_R + 1 - self.prompt_R
        chosen_R, logprobs_R = self._choose(logits_RV, nth_R)
        self.tokens_QN[self.request_R, nth_R] = chosen_R
        self.logprobs_QN[self.request_R, nth_R] = logprobs_R
        self.count_Q[self.request_R] = nth_R + 1
        ended_R = torch.isin(chosen_R, self.stops) | (self.position_R + 2 >= self.end_R)
        ended_R &= self.request_R < nobody
        going_R = ~ended_R & (self.request_R < nobody)
        self.request_R = self.request_R.where(going_R, nobody)
        self.token_R = chosen_R.where(going_R, 0)
        self.position_R = (self.position_R + 1).where(going_R, 0)
        self.prompt_R = self.prompt_R.where(going_R, 1)
        *ended, last = torch.cat([ended_R, self.position_R.max()[None]]).tolist()
        self.longest = last + 1
        ended_rows = [row for row, has_ended in enumerate(ended) if has_ended]
        self.free += ended_rows
        return len(ended_rows)

    def _forward(self, tokens_RS: torch.Tensor) -> torch.Tensor | None:
        """What the model says after the last tokens; `[R, V]` on the last pipeline stage."""
        model = self.model
        if not model.pre_process:
            shape = (*tokens_RS.T.shape, model.config.hidden_size)
            hidden_SRH = torch.empty(shape, dtype=model.config.pipeline_dtype, device=self.device)
            recv_from_prev_pipeline_rank_(hidden_SRH)
            model.set_input_tensor(hidden_SRH)
        output = model(
            tokens_RS, None, None, inference_context=self.cache, runtime_gather_output=True
        )
        if not model.post_process:
            send_to_next_pipeline_rank(output)
            return None
        return output[:, -1, : model.unpadded_vocab_size]

    def _choose(
        self, logits_RV: torch.Tensor | None, nth_R: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each row and its log-probability, the same on all stages."""
        both = torch.empty(2, len(nth_R), dtype=torch.double, device=self.device)
        if logits_RV is not None:
            temperature = self.sampling.temperature
            uniform_R = self.uniform_QN[self.request_R, nth_R] if temperature else None
            both[0], both[1] = choose(logits_RV, temperature, uniform_R)
        group = parallel_state.get_pipeline_model_parallel_group()
        if group.size() > 1:
            dist.broadcast(
                both, parallel_state.get_pipeline_model_parallel_last_rank(), group=group
            )
        return both[0].long(), both[1].float()

    def _responses(self) -> list[Response]:
        responses = []
        for tokens, logprobs, count in zip(
            self.tokens_QN[:-1].tolist(), self.logprobs_QN.tolist(), self.count_Q.tolist()
        ):
            stopped = tokens[count - 1] in self.sampling.stop_ids
            responses.append(Response(tokens[:count], logprobs[:count], stopped))
        return responses
