"""Reinforcement learning with verifiable rewards: its prompts, and the training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.bad_items import BadItems, LeftOut
from megatron_bar.data.chat import as_shown, before_reply, prompt_ids
from megatron_bar.data.chat_format import check_prompt_length, load_chat_format
from megatron_bar.data.next_turn import check_turns
from megatron_bar.data.sources import Conversation, load_conversations, source_name
from megatron_bar.generation.waiting import from_main_at_length
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.training import Rlvr, Source
from megatron_bar.rlvr.backends import backend_name
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.rlvr.reinforce import reinforce
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import Context
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.work.out_of_memory import explain_out_of_memory
from megatron_bar.stages.work.train import model_run, proof_of_freezing
from megatron_bar.verifiers.environments import environment_of
from megatron_bar.verifiers.registry import Scorers, prompt_text, verifier_name

Given = TypeVar("Given")
Found = TypeVar("Found")


def train_on_rewards(context: Context[RlvrStage]) -> dict[str, Any]:
    """Train the policy of the input `start`; returns facts for stage.json.

    `RlvrStage.prepare` has been called before.
    """
    stage, settings = context.stage, context.stage.training
    start = context.checkpoint("start")
    chat_format = load_chat_format(start, stage.chat_template)
    left_out = LeftOut()
    model = ModelConfig.load(start)
    prompts = load_prompts(
        chat_format.tokenizer,
        chat_format.template,
        settings,
        model.max_position_embeddings,
        context.recipe.seed,
        left_out,
    )
    backend = backend_name(settings.backend)
    say(f"{stage.name}: {len(prompts)} prompts, backend {backend}")
    if warning := stage.length_warning(model):
        say(f"{stage.name}: {warning}")
    run = model_run(context, model)
    with explain_out_of_memory(run, settings):
        reinforced = reinforce(run, settings, prompts, chat_format)
    left_out.gather()  # each rank has scored other answers
    proof = proof_of_freezing(context, settings.trainable, reinforced.summary)
    if not is_main():
        return {}
    facts = {
        "prompts": len(prompts),
        "backend": backend,
        "left_out": left_out.record(context.folder),
    }
    return dataclasses.asdict(reinforced) | facts | proof


def load_prompts(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    settings: Rlvr,
    positions: int,
    seed: int,
    left_out: LeftOut,
) -> list[Prompt]:
    """The conversations of all sources as tasks, for a model of so many `positions`.

    All ranks call this; the main one reads, and tells the others. Prompts longer than
    `prompt_length` don't count. Raises BarError for one that can't be used or leaves no room to
    answer, and a missing reference, with its place, unless its source says to skip such items: then
    they are in `left_out`. An item may turn out to be such a one later, when an answer is scored:
    where it is skipped the answer earns nothing. Raises BarError too if no prompt is short enough,
    and for a template that can't go on with an environment's turns.
    """
    if any(source.environment is not None for source in settings.data):
        check_turns(tokenizer, template)
    sources = [
        _PromptSource(
            source, left_out.of(source_name(source), source), Scorers(source), tokenizer, template
        )
        for source in settings.data
    ]

    def read() -> list[list[_Item]]:
        return [each.read(seed, settings.prompt_length, positions) for each in sources]

    prompts = [
        source.prompt(item)
        for source, items in zip(sources, from_main_at_length(read))
        for item in items
    ]
    if not prompts:
        raise BarError(
            "; ".join(
                [
                    f"no prompt is as short as prompt_length {settings.prompt_length}; raise it",
                    *left_out.lines().values(),
                ]
            )
        )
    return prompts


_Item = tuple[Conversation, list[int]]  # with the tokens of its prompt


@dataclasses.dataclass(frozen=True)
class _PromptSource:
    """A source of prompts."""

    source: Source
    bad: BadItems
    scorers: Scorers
    tokenizer: PreTrainedTokenizerBase
    template: str

    def read(self, seed: int, longest: int, positions: int) -> list[_Item]:
        """Its items whose prompts have `longest` tokens at most, less what can't be used."""
        found = []
        for conversation in load_conversations(self.source, seed, self.bad):
            with self.bad.caught(conversation.number, conversation.where):
                ids = prompt_ids(self.tokenizer, conversation.messages, self.template)
                if len(ids) <= longest:
                    check_prompt_length(len(ids), positions)
                    self.prompt((conversation, ids))
                    found.append((conversation, ids))
        return found

    def prompt(self, item: _Item) -> Prompt:
        """Raises BarError for a reference that can't be used."""
        conversation, ids = item
        environment = environment_of(self.source, conversation)
        return Prompt(
            ids,
            prompt_text(conversation),
            verifier_name(self.source),
            _caught(self.scorers.scorer(conversation), conversation, self.bad),
            as_shown(self.tokenizer, before_reply(conversation.messages), self.template),
            environment and _caught(environment, conversation, self.bad),
        )


def _caught(
    judge: Callable[[Given], Found], conversation: Conversation, bad: BadItems
) -> Callable[[Given], Found | float]:
    """`judge`, but 0 where the item turns out to be broken and such items are to be skipped."""

    def judged(given: Given) -> Found | float:
        with bad.caught(conversation.number, conversation.where):
            return judge(given)
        return 0.0

    return judged
