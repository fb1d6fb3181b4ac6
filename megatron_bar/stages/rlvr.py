"""`rlvr`: reinforcement learning with verifiable rewards, on prompts with references."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.chat import chat_template, prompt_ids
from megatron_bar.data.sources import load_conversations
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Rlvr
from megatron_bar.rlvr.nemo import accommodations
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.rlvr.reinforce import Reinforcement
from megatron_bar.rlvr.verifiers import prompt_text, scorer, verifier_name
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import Context
from megatron_bar.stages.data import load_tokenizer, pad_id, stop_ids
from megatron_bar.stages.train import proof_of_freezing


def prepare() -> None:
    """Import the trainer, which has to come before the process groups."""
    accommodations.install()


def run(context: Context) -> dict[str, Any]:
    from megatron_bar.rlvr.nemo.backend import NemoAlignerBackend  # needs `prepare`

    settings: Rlvr = context.training
    start = context.checkpoint("start")
    tokenizer = load_tokenizer(start)
    template = chat_template(context.stage.settings["chat_template"], tokenizer)
    prompts = load_prompts(tokenizer, template, settings, context.recipe.seed)
    say(f"{context.stage.name}: {len(prompts)} prompts")
    reinforced = Reinforcement(
        config=ModelConfig.load(start), start=start, folder=context.folder, settings=settings,
        prompts=prompts, stop_ids=frozenset(stop_ids(start, tokenizer)), pad_id=pad_id(tokenizer),
        decode=tokenizer.decode, layout=context.stage.layout, seed=context.recipe.seed,
        what=context.stage.name,
    ).run(NemoAlignerBackend())
    if not is_main():
        return {}
    return dataclasses.asdict(reinforced) | {"prompts": len(prompts)} | proof_of_freezing(
        context, settings.trainable, reinforced.summary
    )


def load_prompts(
    tokenizer: PreTrainedTokenizerBase, template: str, settings: Rlvr, seed: int
) -> list[Prompt]:
    """The conversations of all sources as tasks; those with long prompts are left out.

    Raises BarError for a missing reference, with its place, and if no prompt is short enough.
    """
    prompts = []
    for source in settings.data:
        for conversation in load_conversations(source, seed):
            ids = prompt_ids(tokenizer, conversation.messages, template)
            if len(ids) <= settings.prompt_length:
                prompts.append(Prompt(ids, prompt_text(conversation), verifier_name(source),
                                      scorer(source, conversation)))
    if not prompts:
        raise BarError(f"no prompt is as short as prompt_length {settings.prompt_length}; raise it")
    return prompts
