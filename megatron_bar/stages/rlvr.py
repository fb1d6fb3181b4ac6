"""`rlvr`: reinforcement learning with verifiable rewards, on prompts with references."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.bad_items import LeftOut
from megatron_bar.data.chat import prompt_ids
from megatron_bar.data.sources import load_conversations, source_name
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Rlvr
from megatron_bar.rlvr.backends import backend_name, backend_of
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.rlvr.reinforce import reinforce
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import is_main
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import Context
from megatron_bar.stages.speaker import speaker_of
from megatron_bar.stages.train import model_run, proof_of_freezing
from megatron_bar.verifiers import prompt_text, scorer, verifier_name


def prepare(context: Context) -> None:
    """Import what the backend needs, which has to come before the process groups."""
    backend_of(context.training.backend).prepare()


def run(context: Context) -> dict[str, Any]:
    settings: Rlvr = context.training
    start = context.checkpoint("start")
    speaker = speaker_of(start, context.stage.settings["chat_template"])
    left_out = LeftOut()
    prompts = load_prompts(speaker.tokenizer, speaker.template, settings, context.recipe.seed,
                           left_out)
    backend = backend_name(settings.backend)
    say(f"{context.stage.name}: {len(prompts)} prompts, backend {backend}")
    reinforced = reinforce(
        model_run(context, ModelConfig.load(start)), settings, prompts, speaker)
    if not is_main():
        return {}
    facts = {"prompts": len(prompts), "backend": backend,
             "left_out": left_out.record(context.folder)}
    return dataclasses.asdict(reinforced) | facts | proof_of_freezing(
        context, settings.trainable, reinforced.summary
    )


def load_prompts(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    settings: Rlvr,
    seed: int,
    left_out: LeftOut,
) -> list[Prompt]:
    """The conversations of all sources as tasks; those with long prompts don't count.

    Raises BarError for a prompt that can't be used and a missing reference, with its place, unless
    its source says to skip such items: then they are in `left_out`. Raises it too if no prompt is
    short enough.
    """
    prompts = []
    for source in settings.data:
        bad = left_out.of(source_name(source), source)
        for conversation in load_conversations(source, seed, bad):
            with bad.caught(conversation.number, conversation.where):
                ids = prompt_ids(tokenizer, conversation.messages, template)
                if len(ids) <= settings.prompt_length:
                    prompts.append(Prompt(ids, prompt_text(conversation), verifier_name(source),
                                          scorer(source, conversation)))
    if not prompts:
        raise BarError("; ".join([
            f"no prompt is as short as prompt_length {settings.prompt_length}; raise it",
            *left_out.told().values()]))
    return prompts
