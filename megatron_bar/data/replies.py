"""Spans of a conversation's text in which the assistant speaks, and where each reply ends.

A template that marks replies with `{% generation %}` says so itself. Of another one it is proven,
reply by reply: the text that asks for the reply stands before it in the whole text, the reply's
words come next, and then the first token that ends a turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.message_keys import CONTENT, FUNCTION_CALLS
from megatron_bar.data.rendering import Span
from megatron_bar.runtime.errors import BarError

MARKER = re.compile(r"<\|[^|<>]+\|>")
# The text of messages; with True, and what asks for a reply.
Text = Callable[[Sequence[dict[str, Any]], bool], str]


class UnprovenReplies(BarError):
    """It can't be shown where the replies of a conversation lie."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "the chat template has no {% generation %}, and where its replies lie "
            f"can't be proven: {reason}"
        )


def ends_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that may end a turn, as text: special ones, and others written like <|these|>."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    return sorted({*tokenizer.all_special_tokens, *filter(MARKER.fullmatch, added)})


def proven_spans(
    text_of: Text, messages: Sequence[dict[str, Any]], prompt: bool, ends: Sequence[str]
) -> tuple[str, list[Span]]:
    """The text of `messages` and the span of each reply, its end token included.

    Raises UnprovenReplies.
    """
    whole = text_of(messages, prompt)
    end_token = re.compile("|".join(map(re.escape, ends)))
    spans: list[Span] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = messages[:number]
        closed, asked = text_of(before, False), text_of(before, True)
        if asked == closed:
            raise UnprovenReplies(
                "it opens no reply when it is asked for one (add_generation_prompt)"
            )
        if not whole.startswith(asked) or (spans and len(asked) < spans[-1][1]):
            raise UnprovenReplies(
                f"the text that asks for message {number + 1} isn't what stands "
                "before it in the whole conversation"
            )
        end = end_token.search(whole, len(asked))
        if end is None:
            raise UnprovenReplies(f"no token ends message {number + 1}")
        # What asks for a reply may hold its first words, such as <think>.
        begin = len(closed) if asked.startswith(closed) else len(asked)
        for key in (CONTENT, FUNCTION_CALLS):
            words = (message.get(key) or "").strip()
            place = whole.rfind(words, begin, end.start())
            if words and (place < 0 or place + len(words) <= len(asked)):
                raise UnprovenReplies(
                    f"the {key} of message {number + 1} isn't where its reply should be"
                )
        spans.append((len(asked), end.end()))
    return whole, spans


def check_end(text: str, spans: Sequence[Span], ends: Sequence[str]) -> None:
    """Raise BarError unless the last reply ends with a token that ends a turn, inside its span."""
    start, end = spans[-1]
    if tail := text[end:].strip():
        raise BarError(
            f"the chat template ends replies with {tail!r} outside {{% generation %}}, so that a "
            "model would never learn to stop; move it inside"
        )
    if not text[start:end].rstrip().endswith(tuple(ends)):
        raise BarError(
            "the chat template has no end token, such as eos_token, behind a reply inside "
            "{% generation %}, so that a model would never learn to stop; write it there"
        )
