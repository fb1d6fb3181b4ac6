"""Generation behind one interface: prompts in, responses out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """A prompt to answer. What is sampled depends on the seed and `key` alone."""

    prompt: Sequence[int]
    key: tuple[int, ...] = ()
    most: int | None = None  # tokens, where the sampling's max_new_tokens are too many


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice of tokens; temperature 0 takes the most likely one."""

    max_new_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0
    seed: int = 0

    def longest(self, request: Request, positions: int) -> int:
        """Tokens that the answer may have, where a row has at most so many `positions`."""
        room = positions - len(request.prompt)
        return min(self.max_new_tokens, room, room if request.most is None else request.most)


@dataclass(frozen=True)
class Response:
    """A generated response, the stop token included where one came."""

    tokens: list[int]
    logprobs: list[float]  # of each token, at the sampling temperature (1 where that is 0)
    stopped: bool  # False where it was cut at max_new_tokens

    @property
    def answer(self) -> list[int]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.stopped else self.tokens


class RolloutEngine(Protocol):
    """Two are built: the training processes themselves (`rollouts`), and servers (`openai_engine`),
    to which `served_policy` brings the weights.
    """

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        advance: Callable[[int], None] = lambda done: None,
    ) -> list[Response]:
        """A response to each request, in their order; `advance` is told how many have ended.

        Ranks of one model-parallel group are given the same requests, data-parallel ranks each
        their own; all call this together, also those that have none.
        """
        ...
