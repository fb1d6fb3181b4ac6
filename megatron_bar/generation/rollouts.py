"""Generation with a key-value cache, in the processes that hold the model, in any layout.

Shapes: R rows that are computed together, Q requests, N new tokens, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
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
from megatron_bar.runtime.stopping import CutShort, asked_to_stop

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

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Response]:
        """See RolloutEngine. Raises BarError for a prompt that fills all of its positions."""
        longest = max((len(request.prompt) for request in requests), default=0)
        if longest >= self.model.max_sequence_length:
            raise BarError(
                f"a prompt has {longest} tokens, and the model's "
                f"{self.model.max_sequence_length} positions leave no room to answer; "
                "leave out prompts that long"
            )
        with _without_gradients():
            return _Run(self.model, requests, sampling, self.batch_size).finish(advance)


def _without_gradients() -> contextlib.AbstractContextManager:
    """On a CPU inference mode, whose calls are quicker. Compiled kernels of a GPU would be compiled
    for it once more.
    """
    return torch.no_grad() if torch.cuda.is_available() else torch.inference_mode()


class _Run:
    """Requests on their way through the rows.

    A row holds a request, the token to feed next and its position. Reading a prompt leaves out its
    last token, which is the first to be fed; so every pass over the rows yields a token of each.
    Rows without a request compute, and nobody looks. Who is where stands in lists: of a step's few
    numbers tensors would take longer than the numbers themselves.
    """

    def __init__(
        self, model: LanguageModel, requests: Sequence[Request], sampling: Sampling, batch_size: int
    ) -> None:
        self.model, self.requests, self.sampling = model, requests, sampling
        # Prompts of like length are read together, and those of one prompt stay side by side.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        self.waiting = deque(order)
        self.device = torch.device(torch.cuda.current_device())
        # The tokens of each request and its response, at most.
        self.ends = [
            len(request.prompt) + sampling.longest(request, model.max_sequence_length)
            for request in requests
        ]
        rows, length = self._all_reduce_max(
            min(batch_size, len(requests)), max(self.ends, default=1)
        )
        self.cache = RowCache(rows, length)
        self.free = list(range(rows))
        self.in_row: list[int | None] = [None] * rows  # requests, by number
        self.positions = [0] * rows
        self.token_R = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]
        if sampling.temperature:
            self.uniform_QN = uniform_numbers(requests, sampling).numpy()

    def finish(self, advance: Callable[[int], None]) -> list[Response]:
        """Generate until all requests are answered, on all ranks that share experts.

        Raises CutShort, on all ranks of the model and all that share its experts, where the stage
        is asked to stop before.
        """
        while True:
            admitted = self._admit()
            prompts = list(dict.fromkeys(tuple(self.requests[i].prompt[:-1]) for _, i in admitted))
            count, length, busy, waiting, asked = self._all_reduce_max(
                len(prompts),
                max(map(len, prompts), default=0),
                self.cache.rows - len(self.free),
                len(self.waiting),
                int(asked_to_stop()),
            )
            if length:
                self._read(prompts, admitted, count, length)
            if not busy:
                return self._responses()
            if not waiting and busy <= self.cache.rows // 2:
                self._shrink(busy)
            advance(self._step(bool(asked)))

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
            for row, number in admitted:
                self.in_row[row] = number
                self.positions[row] = len(self.requests[number].prompt) - 1
            rows = torch.tensor([row for row, _ in admitted], device=self.device)
            self.token_R[rows] = torch.tensor(
                [self.requests[number].prompt[-1] for _, number in admitted], device=self.device
            )
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
        self.token_R = self.token_R[index]
        self.in_row = [self.in_row[row] for row in kept]
        self.positions = [self.positions[row] for row in kept]

    def _step(self, asked: bool) -> int:
        """One token of each row; returns how many requests are answered now.

        `asked` says whether ranks that share experts with this one heard that all are to stop.
        """
        self.cache.decode(self.positions, self.device)
        tokens, logprobs, asked = self._choose(self._forward(self.token_R[:, None]), asked)
        if asked:
            raise CutShort
        ended = []
        for row, number in enumerate(self.in_row):
            if number is not None and self._add(row, number, int(tokens[row]), logprobs[row]):
                ended.append(row)
        for row in ended:
            self.in_row[row], self.positions[row] = None, 0
        self.free += ended
        return len(ended)

    def _add(self, row: int, number: int, token: int, logprob: float) -> bool:
        """Add a token to the response to the request in a row; whether it is the last one."""
        self.tokens[number].append(token)
        self.logprobs[number].append(logprob)
        self.positions[row] += 1
        return token in self.sampling.stop_ids or self.positions[row] + 1 >= self.ends[number]

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
        self, logits_RV: torch.Tensor | None, asked: bool
    ) -> tuple[list[float], list[float], bool]:
        """The next token of each row, which is fed next, its log-probability, and `asked`.

        All ranks get what one of the last stage's has.

        Tensor-parallel ranks have the same logits, but a GPU may sum them up in another order each
        time: one that drew another token than the others would go on with another text.
        """
        rows = len(self.in_row)
        told = torch.full((2, rows + 1), float(asked), dtype=torch.double, device=self.device)
        if logits_RV is not None:
            uniform_R = None
            if self.sampling.temperature:
                uniform_R = torch.tensor(
                    [
                        0.0 if number is None else self.uniform_QN[number, len(self.tokens[number])]
                        for number in self.in_row
                    ],
                    dtype=torch.double,
                    device=self.device,
                )
            told[0, :rows], told[1, :rows] = choose(logits_RV, self.sampling.temperature, uniform_R)
        group = parallel_state.get_model_parallel_group()
        if group.size() > 1:
            # Ordered by stage, and within a stage by tensor-parallel rank.
            first_of_last = -parallel_state.get_tensor_model_parallel_world_size()
            dist.broadcast(told, dist.get_process_group_ranks(group)[first_of_last], group=group)
        self.token_R = told[0, :rows].long()
        tokens, logprobs = told.tolist()  # the one time that a step waits for the device
        return tokens, logprobs, bool(tokens[rows])

    def _responses(self) -> list[Response]:
        return [
            Response(tokens, logprobs, tokens[-1] in self.sampling.stop_ids)
            for tokens, logprobs in zip(self.tokens, self.logprobs)
        ]
