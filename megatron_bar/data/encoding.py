"""From conversations and texts to tokens, with the place of a fault in its message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_bar.data.chat import render
from megatron_bar.data.packing import Example
from megatron_bar.data.sources import Conversation
from megatron_bar.runtime.errors import BarError

_TEXTS_AT_ONCE = 1000


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Conversation],
    template: str,
    source: int = 0,
) -> list[Example]:
    """Examples to pack. `source` is the index that statistics count them under.

    Raises BarError as `chat.render` does, with the file and line of the conversation.
    """
    examples = []
    for conversation in conversations:
        try:
            ids, loss_mask = render(tokenizer, conversation.messages, template)
        except BarError as error:
            raise BarError(f"{conversation.where or conversation.source}: {error}") from None
        # Arrays: five bytes a token, where lists take forty.
        examples.append(Example(np.array(ids, np.int32), np.array(loss_mask, bool), source))
    return examples


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, without bos or eos. A marker in a text is read as its token."""
    arrays = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[start:start + _TEXTS_AT_ONCE])
        encoded = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        arrays += [np.array(ids, np.int32) for ids in encoded]
    return arrays
