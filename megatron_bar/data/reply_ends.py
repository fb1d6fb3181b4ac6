"""Where a model that was trained with a chat template ends its replies."""

from __future__ import annotations

from itertools import groupby

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.chat import render
from megatron_bar.runtime.errors import BarError

# Templates may end a conversation's last reply in another way than those before.
_TALK = ("user", "assistant", "user", "assistant")


def reply_ends(tokenizer: PreTrainedTokenizerBase, template: str) -> set[int]:
    """The tokens that close a reply: the last special one of what carries loss.

    Empty for a template that doesn't mark replies, or that refuses a plain conversation.
    """
    talk = [{"role": role, "content": "a"} for role in _TALK]
    try:
        ids, carries_loss = render(tokenizer, talk, template)
    except BarError:
        return set()
    special = tokenizer.added_tokens_decoder
    ends = set()
    for inside, reply in groupby(zip(ids, carries_loss), key=lambda pair: pair[1]):
        closing = [token for token, _ in reply if token in special]
        if inside and closing:
            ends.add(closing[-1])
    return ends
