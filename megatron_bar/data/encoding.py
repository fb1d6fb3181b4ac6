"""From conversations and texts to tokens, with the place of a fault in its message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.chat import render
from megatron_bar.data.packing import Example
from megatron_bar.data.sources import Conversation
from megatron_bar.runtime.errors import BarError


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
        examples.append(Example(ids, loss_mask, source))
    return examples


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without bos or eos. A marker in a text is read as its token."""
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
