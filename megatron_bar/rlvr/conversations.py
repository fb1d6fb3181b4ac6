"""Answers to prompts, turn by turn: the policy replies, and where a prompt has an environment, that
says what comes next, until it ends the conversation.

All conversations that go on are asked together, a round after the other.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron.core import parallel_state

from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.data.messages import Message
from megatron_bar.data.next_turn import reply_message, turn_ids
from megatron_bar.generation.engine import Request, Response
from megatron_bar.generation.waiting import map_in_background, wait_for
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.runtime.distributed import all_reduce_any, of_all_ranks
from megatron_bar.runtime.errors import BarError, VerifierFailed
from megatron_bar.verifiers.failures import Failures


@dataclass(frozen=True)
class Answer:
    """All that follows a prompt: what the policy said, and an environment's turns between."""

    tokens: list[int]
    own: list[bool]  # whether the policy said it
    logprobs: list[float]  # of each token as it was sampled; 0 for those of an environment
    stopped: bool  # False where it was cut
    reward: float | None = None  # what an environment gave; None leaves it to the verifier


@dataclass(frozen=True)
class Rules:
    """Limits and tools of all conversations of a stage."""

    chat_format: ChatFormat
    longest: int  # tokens that may follow a prompt, an environment's among them
    positions: int  # the model's
    turns: int  # replies, at most
    workers: int  # conversations that a process takes to their environments side by side
    failures: Failures


@dataclass(frozen=True)
class _Next:
    """What becomes of a conversation after a reply: its reward, or the turn that goes on."""

    reward: float | None = None
    turn: Message | None = None
    ids: Sequence[int] = ()


class _Conversation:
    def __init__(self, prompt: Prompt, key: tuple[int, ...], rules: Rules) -> None:
        self.prompt, self.key, self.rules = prompt, key, rules
        self.longest = min(rules.longest, rules.positions - len(prompt.ids))
        self.messages = list(prompt.messages)
        self.tokens: list[int] = []
        self.own: list[bool] = []
        self.logprobs: list[float] = []
        self.replies = 0
        self.goes_on = True
        self.stopped = False
        self.reward: float | None = None

    def request(self) -> Request:
        key = (*self.key, self.replies) if self.replies else self.key
        return Request([*self.prompt.ids, *self.tokens], key, self.longest - len(self.tokens))

    def hear(self, response: Response) -> None:
        """Add what the policy said."""
        self._add(response.tokens, response.logprobs, own=True)
        self.replies += 1
        self.stopped = response.stopped
        self.goes_on = response.stopped and self.prompt.environment is not None
        if self.goes_on:
            self.reply = self.rules.chat_format.tokenizer.decode(response.answer)

    def ask_environment(self) -> _Next:
        """What the environment makes of the reply; where it fails, that ends without a reward."""
        assert self.prompt.environment is not None  # else nothing goes on
        try:
            move = self.prompt.environment([*self.messages, reply_message(self.reply)])
            if isinstance(move, dict):
                return _Next(turn=move, ids=self._ids_of(move))
            return _Next(reward=move)
        except VerifierFailed as error:
            self.rules.failures.add(error)
            return _Next(reward=0.0)

    def _ids_of(self, turn: Message) -> list[int]:
        chat = self.rules.chat_format
        try:
            return turn_ids(chat.tokenizer, self.messages, self.reply, turn, chat.template)
        except BarError as error:
            raise VerifierFailed(
                f"a turn of the environment can't follow in the conversation that "
                f"asks {self.prompt.text[:60]!r}: {error}"
            ) from None

    def go_on(self, following: _Next) -> None:
        """Add the next turn, or end; without room for one more reply it is cut."""
        if following.turn is None:
            self.goes_on, self.reward = False, following.reward
        elif (
            self.replies == self.rules.turns
            or len(self.tokens) + len(following.ids) >= self.longest
        ):
            self.goes_on = self.stopped = False
        else:
            self.messages += [reply_message(self.reply), following.turn]
            self._add(following.ids, [0.0] * len(following.ids), own=False)

    def _add(self, tokens: Sequence[int], logprobs: Sequence[float], own: bool) -> None:
        self.tokens += tokens
        self.logprobs += logprobs
        self.own += [own] * len(tokens)


class Conversations:
    """A rank's conversations in a step, each with its prompt and the key of what is sampled."""

    def __init__(
        self, asked: Sequence[tuple[Prompt, tuple[int, ...]]], rules: Rules, environments: bool
    ) -> None:
        """`environments` says whether a prompt of the stage, be it of another rank, has one."""
        self.rules, self.environments = rules, environments
        self.all = [_Conversation(prompt, key, rules) for prompt, key in asked]
        self.environment_seconds = self.generation_seconds = 0.0

    def finish(self, generate: Callable[[Sequence[Request]], list[Response]]) -> list[Answer]:
        """Take them to their ends, of all ranks side by side; these call this together.

        `generate`, which ranks call together, too, may be given as few requests as none.
        """
        return self._finish(generate, all_reduce_any, self._shared_out)

    def finish_alone(self, generate: Callable[[Sequence[Request]], list[Response]]) -> list[Answer]:
        """The same without any other rank, from any thread."""
        return self._finish(generate, bool, self._ask_environments)

    def _finish(
        self,
        generate: Callable[[Sequence[Request]], list[Response]],
        on_any_rank: Callable[[bool], bool],
        ask_environments: Callable[[Sequence[_Conversation]], list[_Next]],
    ) -> list[Answer]:
        going = self.all
        for _ in range(self.rules.turns):
            started = time.monotonic()
            responses = generate([each.request() for each in going])
            self.generation_seconds += time.monotonic() - started
            for each, response in zip(going, responses):
                each.hear(response)
            if not self.environments:
                break
            started = time.monotonic()
            going = [each for each in going if each.goes_on]
            for each, following in zip(going, ask_environments(going)):
                each.go_on(following)
            self.environment_seconds += time.monotonic() - started
            going = [each for each in going if each.goes_on]
            if not on_any_rank(bool(going)):
                break
        return [
            Answer(each.tokens, each.own, each.logprobs, each.stopped, each.reward)
            for each in self.all
        ]

    def _ask_environments(self, going: Sequence[_Conversation]) -> list[_Next]:
        return map_in_background(_Conversation.ask_environment, going, self.rules.workers)

    def _shared_out(self, going: Sequence[_Conversation]) -> list[_Next]:
        """Of a model-parallel group's ranks, which have the same, each asks a part of them."""
        group = parallel_state.get_model_parallel_group()
        rank, ranks = group.rank(), group.size()
        found = wait_for(functools.partial(self._ask_environments, going[rank::ranks]))
        parts = of_all_ranks(found or [], group)
        return [parts[number % ranks][number // ranks] for number in range(len(going))]
