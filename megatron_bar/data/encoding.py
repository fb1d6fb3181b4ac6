"""Encoding of texts and conversations to tokens, with the place of a fault in its message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_bar.data.bad_items import BadItems
from megatron_bar.data.chat import Rendered, rendered
from megatron_bar.data.packing import Example
from megatron_bar.data.sources import Conversation, Preference
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import json_digest

_TEXTS_AT_ONCE = 1000


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Conversation],
    template: str,
    bad: BadItems | None = None,
    notes: Counter[str] | None = None,
) -> Iterator[Example]:
    """Documents to learn replies from.

    Counts in `notes` how many conversations each note of `chat.rendered` holds for.

    Raises BarError as `chat.rendered` does, with the file and line of the conversation, unless
    `bad` lists such conversations.
    """
    bad = bad or BadItems(skip=False)
    for conversation in conversations:
        with bad.caught(conversation.number, conversation.where or conversation.source):
            made = rendered(tokenizer, conversation.messages, template)
            if notes is not None:
                notes.update(made.notes)
            yield _example(made)


def encode_preferences(
    tokenizer: PreTrainedTokenizerBase,
    preferences: Iterable[Preference],
    template: str,
    bad: BadItems,
    notes: Counter[str],
) -> Iterator[Example]:
    """The chosen and the rejected document of each pair, one after the other.

    Notes and faults are as in `encode_conversations`; a fault of one leaves out both.
    """
    for pair in preferences:
        with bad.caught(pair.number, pair.where):
            both = [
                rendered(tokenizer, messages, template) for messages in (pair.chosen, pair.rejected)
            ]
            for made in both:
                notes.update(made.notes)
                yield _example(made)


def _example(made: Rendered) -> Example:
    # Arrays: five bytes a token, where lists take forty.
    return Example(np.array(made.ids, np.int32), np.array(made.loss_mask, bool))


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of each text and eos, without bos. Texts without tokens are left out.

    A marker in a text is read as its token, so eos within a text ends a document there.

    Raises BarError if the tokenizer has no eos.
    """
    if tokenizer.eos_token_id is None:
        raise BarError(f"the tokenizer {tokenizer.name_or_path} has no eos token to end texts")
    texts = iter(texts)
    while some := list(islice(texts, _TEXTS_AT_ONCE)):
        for ids in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
            if ids:
                yield np.array([*ids, tokenizer.eos_token_id], np.int32)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when the tokenizer's vocabulary, merges, rules or eos do."""
    return json_digest([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id])
