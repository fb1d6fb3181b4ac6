"""Answers to the prompts of a step: by the model itself or by servers, now or a step ahead."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.generation.engine import Response, RolloutEngine, Sampling
from megatron_bar.generation.openai_engine import OpenAIEngine
from megatron_bar.generation.probe import Probe
from megatron_bar.generation.rollouts import MegatronEngine
from megatron_bar.generation.served_policy import ServedPolicy
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.conversations import Answer, Conversations, Rules
from megatron_bar.rlvr.policy import Policy
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.rlvr.rollouts_ahead import PendingRollout
from megatron_bar.rlvr.step_seconds import StepSeconds
from megatron_bar.training.model_run import ModelRun
from megatron_bar.verifiers.failures import Failures

Pairs = Sequence[tuple[int, int]]  # of a prompt's number and a sample's


class Generator:
    """Generates the answers to this rank's prompts, step by step. All ranks call it together."""

    def __init__(
        self,
        run: ModelRun,
        settings: Rlvr,
        prompts: Sequence[Prompt],
        chat_format: ChatFormat,
        policy: Policy,
        served: ServedPolicy | None,
        probe: Callable[[], Probe],
        failures: Failures,
        seconds: StepSeconds,
    ) -> None:
        """`served` generates in place of the policy; `probe` is what the policy says to prove it.

        `failures` are told of environments that fail, `seconds` of the time that goes into them.
        """
        self.settings, self.prompts, self.policy = settings, prompts, policy
        self.served, self.probe, self.seconds = served, probe, seconds
        self.sampling = Sampling(
            settings.response_length, chat_format.stop_ids, settings.temperature, run.seed
        )
        self.environments = any(prompt.environment is not None for prompt in prompts)
        self.rules = Rules(
            chat_format,
            settings.response_length,
            run.config.max_position_embeddings,
            settings.max_turns,
            settings.verifier_workers,
            failures,
        )
        self._pending: PendingRollout | None = None  # what servers are answering

    def answers(self, asked: Pairs, step: int, following: Pairs | None) -> list[Answer]:
        """The answers to what is `asked` in a step, in order.

        What is sampled depends on the seed, the step, prompt and sample alone. With rollouts ahead
        `following` is asked then, with the weights of now, for the next step to get.
        """
        if self.settings.rollouts_ahead:
            return self._answers_ahead(asked, step, following)
        conversations = self._conversations(asked, step)
        with self._engine() as engine:
            answers = conversations.finish(
                functools.partial(engine.generate, sampling=self.sampling)
            )
        if self.environments:
            self.seconds.add("environment", conversations.environment_seconds)
        if self.served is not None:
            self.seconds.add("servers", conversations.generation_seconds)
            self.served.rest()
        return answers

    def _answers_ahead(self, asked: Pairs, step: int, following: Pairs | None) -> list[Answer]:
        """After a stop nothing is under way: the step that comes is asked with its own weights."""
        engine = None
        if self._pending is None:
            engine = self._served_engine()
            self._pending = self._begin(engine, asked, step)
        answers, seconds = self._pending.result()
        self.seconds.add("servers", seconds)
        self._pending = None
        if following is not None:
            self._pending = self._begin(engine or self._served_engine(), following, step + 1)
        return answers

    def _begin(self, engine: OpenAIEngine, asked: Pairs, step: int) -> PendingRollout:
        def find(finish: Callable[..., list[Answer]], generate: Callable[..., list[Response]]):
            conversations = self._conversations(asked, step)
            answers = finish(conversations, functools.partial(generate, sampling=self.sampling))
            return answers, conversations.generation_seconds

        return PendingRollout(
            functools.partial(find, Conversations.finish_alone, engine.ask),
            functools.partial(find, Conversations.finish, engine.generate),
        )

    def _conversations(self, asked: Pairs, step: int) -> Conversations:
        keyed = [(self.prompts[prompt], (step, prompt, sample)) for prompt, sample in asked]
        return Conversations(keyed, self.rules, self.environments)

    @contextlib.contextmanager
    def _engine(self) -> Iterator[RolloutEngine]:
        """What generates by the weights of now, the model itself or servers that have them."""
        if self.served is not None:
            yield self._served_engine()
        else:
            with self.policy.generating() as model:
                yield MegatronEngine(model, self.settings.rollout_batch_size)

    def _served_engine(self) -> OpenAIEngine:
        assert self.served is not None, "only where servers generate"
        return self.served.engine(self.policy.model, self.probe())
