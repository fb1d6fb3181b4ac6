"""The chat format of a model: the one that its folder or a recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_bar.checkpoints.tokenizer_files import (
    ChatFormat,
    eos_token_ids,
    has_tokenizer,
    load_tokenizer,
)
from megatron_bar.data.chat import chat_template, differs_from_own, render
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError

# Templates may end a conversation's last reply in another way than those before.
_TALK = ("user", "assistant", "user", "assistant")


def load_chat_format(folder: Path, template: str | None) -> ChatFormat:
    """The chat format of a Hugging Face folder or a checkpoint, with a template that is named.

    By default the template is its own. An answer ends where its generation config or the template
    ends one.

    Raises BarError if there is no tokenizer, or no such template.
    """
    tokenizer = load_tokenizer(folder)
    source = named_template(template, tokenizer)
    stops = eos_token_ids(folder) or {tokenizer.eos_token_id}
    stops |= _reply_ends(tokenizer, source)
    return ChatFormat(tokenizer, source, frozenset(stops - {None}), pad_id(tokenizer))


def find_chat_format(folder: Path, template: str | None) -> ChatFormat | None:
    """`load_chat_format`, or None if no template is named and the folder has none.

    Raises BarError for a `template` that there isn't, or that has no tokenizer to go with.
    """
    if template is None and not (has_tokenizer(folder) and load_tokenizer(folder).chat_template):
        return None
    return load_chat_format(folder, template)


def named_template(name: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that the recipe names, or the model's own.

    Says so if the recipe's is another format than the model's. Raises BarError as `chat_template`.
    """
    template = chat_template(name, tokenizer)
    if name is not None and (warning := template_warning(name, template, tokenizer)):
        say(f"warning: {warning}")
    return template


def template_warning(name: str, template: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A warning about a named template that is another format than the model's own, else None."""
    if not differs_from_own(template, tokenizer):
        return None
    return (
        f"chat_template {name} is another format than the model's own, so the model "
        "has to learn it; leave chat_template out to use its own"
    )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def check_prompt_length(length: int, positions: int) -> None:
    """Raise BarError for a prompt so long that a model has no position left to answer in."""
    if length >= positions:
        raise BarError(
            f"the prompt has {length} tokens, which leaves no room for an answer in the "
            f"model's {positions} positions"
        )


def closing_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], loss_mask: Sequence[bool]
) -> set[int]:
    """The tokens that close replies: of each run of tokens that carry loss the last special one."""
    special = tokenizer.added_tokens_decoder
    ends = set()
    for learned, reply in groupby(zip(ids, loss_mask), key=lambda pair: pair[1]):
        closing = [token for token, _ in reply if token in special]
        if learned and closing:
            ends.add(closing[-1])
    return ends


def _reply_ends(tokenizer: PreTrainedTokenizerBase, template: str) -> set[int]:
    """The tokens that a template closes replies with.

    Empty for one that doesn't mark replies, or that refuses a plain conversation.
    """
    talk = [{"role": role, "content": "a"} for role in _TALK]
    try:
        ids, loss_mask = render(tokenizer, talk, template)
    except BarError:
        return set()
    return closing_tokens(tokenizer, ids, loss_mask)
