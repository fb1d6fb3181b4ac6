"""The kind of each token, and who says it."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_bar.data.chat import before_reply, prompt_tokens
from megatron_bar.data.messages import ROLES, Message

# `template` is what the chat template puts around messages, and every special token.
KINDS = ("template", "words", "digits", "punctuation", "code", "space")
SPEAKERS = ("template", *ROLES)
_TEMPLATE, _CODE = KINDS.index("template"), KINDS.index("code")
# Fenced or quoted code, and lines that can hardly be anything else.
_CODE_TEXT = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`"
    r"|^[ \t]*(?:def|class|for|while|if|elif|else|try|except|with)\b[^\n]*:[ \t]*$"
    r"|^[ \t]*(?:return|import|from|assert|print)\b[^\n]*[\w)\]\"']$"
    r"|^[ \t]+[\w.\[\], ]+ [-+*/]?= [^\n]+$",
    re.MULTILINE | re.DOTALL,
)
_PARTS = ("content", "functions", "function_calls")


@dataclass(frozen=True)
class LabelledText:
    """A prompt and an answer, token by token: ids, their text, and indices of KINDS, SPEAKERS."""

    ids: list[int]
    texts: list[str]
    kinds_T: np.ndarray
    speakers_T: np.ndarray


def label_tokens(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    answer: Sequence[int],
) -> LabelledText:
    """The conversation up to its last reply, and `answer` in that reply's place.

    Raises BarError as `prompt_ids` does.
    """
    ids, text, spans = prompt_tokens(tokenizer, messages, template)
    speaker_of_char = np.full(len(text) + 1, SPEAKERS.index("template"), np.int8)
    end = 0
    for message in before_reply(messages):
        for part in map(message.get, _PARTS):
            words = part.strip() if isinstance(part, str) else ""
            found = text.find(words, end)
            if words and found >= 0:  # a template may leave a part out, or write it otherwise
                end = found + len(words)
                speaker_of_char[found:end] = SPEAKERS.index(message["role"])
    speakers = speaker_of_char[[_inside(text, span) for span in spans]]
    markers = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    answer_texts = [tokenizer.decode([token]) for token in answer]
    # A marker at the end of a line is no part of it.
    plain = ["" if token in markers else word for token, word in zip(answer, answer_texts)]
    ends = np.cumsum([len(piece) for piece in plain], dtype=int).tolist()
    answer_spans = list(zip([0, *ends[:-1]], ends))
    texts = [text[start:stop] for start, stop in _without_overlaps(spans)] + answer_texts
    kinds = np.concatenate([_kinds(text, spans), _kinds("".join(plain), answer_spans)])
    speakers = np.concatenate(
        [speakers, np.full(len(answer_texts), SPEAKERS.index("assistant"), np.int8)]
    )
    all_ids = [*ids, *answer]
    kinds[np.isin(all_ids, sorted(markers)) | (speakers == SPEAKERS.index("template"))] = _TEMPLATE
    return LabelledText(all_ids, texts, kinds, speakers)


def _inside(text: str, span: tuple[int, int]) -> int:
    """A token's first character that isn't space, or its first one: " the" is part of a word."""
    start, end = span
    return start + len(text[start:end]) - len(text[start:end].lstrip() or text[start:end])


def _without_overlaps(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that don't overlap: tokens that share a character each claim all of it."""
    ends = [0, *(end for _, end in spans)]
    return [(max(start, before), end) for (start, end), before in zip(spans, ends)]


def _kinds(text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    is_code = np.zeros(len(text) + 1, bool)
    for found in _CODE_TEXT.finditer(text):
        is_code[slice(*found.span())] = True
    kinds = np.array([_surface(text[start:end]) for start, end in spans], np.int8)
    if len(kinds):
        kinds[is_code[[_inside(text, span) for span in spans]]] = _CODE
    return kinds


@functools.lru_cache(maxsize=1 << 17)
def _surface(piece: str) -> int:
    if not piece.strip():
        name = "space"
    elif any(c.isalpha() for c in piece):
        name = "words"
    elif any(c.isdigit() for c in piece):
        name = "digits"
    else:
        name = "punctuation"
    return KINDS.index(name)
