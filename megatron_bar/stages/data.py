"""A stage's data, tokenized and packed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_bar.checkpoints.convert import COMPANION_FOLDER
from megatron_bar.data.chat import chat_template
from megatron_bar.data.encoding import encode_conversations, encode_texts
from megatron_bar.data.packing import Example, PackedRows, pack_examples, pack_texts
from megatron_bar.data.sources import (
    Conversation,
    load_conversations,
    load_texts,
    source_name,
    stratified,
)
from megatron_bar.recipe.schema import Source
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError


def load_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a checkpoint carries. Raises BarError if there is none."""
    folder = Path(checkpoint) / COMPANION_FOLDER
    if not (folder / "tokenizer.json").is_file():
        raise BarError(
            f"{checkpoint} carries no tokenizer; import it from a Hugging Face folder that has one"
        )
    return AutoTokenizer.from_pretrained(folder)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def conversations_by_source(sources: Sequence[Source], seed: int) -> dict[str, list[Conversation]]:
    """Conversations of each source. Raises BarError if two sources have one name."""
    found: dict[str, list[Conversation]] = {}
    for source in sources:
        name = source_name(source)
        if name in found:
            raise BarError(f"two data sources are called {name!r}; give one of them a name")
        found[name] = load_conversations(source, seed)
    return found


def packed_conversations(
    tokenizer: PreTrainedTokenizerBase,
    by_source: dict[str, list[Conversation]],
    template: str | None,
    sequence_length: int,
) -> PackedRows:
    """Rows of conversations from all sources, with loss on what the assistant says."""
    source_template = chat_template(template, tokenizer)
    examples: list[Example] = []
    for number, conversations in enumerate(by_source.values()):
        examples += encode_conversations(tokenizer, conversations, source_template, number)
    return _reported(pack_examples(examples, sequence_length))


def packed_texts(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[Source], seed: int, sequence_length: int
) -> PackedRows:
    """Rows of running text from all sources, with loss on every token."""
    texts = [text for source in sources for text in load_texts(source, seed)]
    ids = encode_texts(tokenizer, texts)
    return _reported(pack_texts(ids, sequence_length, tokenizer.eos_token_id))


def routing_sample(
    by_domain: dict[str, Sequence[Source]], fraction: float, seed: int
) -> dict[str, list[Conversation]]:
    """The same fraction of every SFT source of every domain; shared sources count once.

    Sources are told apart by what they hold: general data that several domains mix in is sampled
    once, as the published recipe does.
    """
    sources: dict[str, Source] = {}
    for domain_sources in by_domain.values():
        for source in domain_sources:
            name = source_name(source)
            known = sources.get(name)
            if known is not None and _place(known) != _place(source):
                raise BarError(f"two data sources are called {name!r}; give one of them a name")
            if known is None or _size(source) > _size(known):
                sources[name] = dataclasses.replace(source, repeat=1)
    return stratified(conversations_by_source(list(sources.values()), seed), fraction, seed)


def _size(source: Source) -> float:
    return math.inf if source.count is None else source.count


def _place(source: Source) -> tuple:
    return source.path, source.hub, source.toy, source.split


def _reported(rows: PackedRows) -> PackedRows:
    say(f"data: {rows.report}")
    return rows
