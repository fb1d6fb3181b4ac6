"""Chat templates, and which tokens carry loss.

A template marks what the assistant says with `{% generation %}`: its words, its function calls and
the token that ends its turn. These tokens carry loss, the others don't.

Text is tokenized piece by piece, cut where the assistant begins and stops to speak. A token can
then never lie half inside a reply, and the tokens of a prompt are the same at training and at
inference, even before a reply that begins with a line break, which a tokenizer would otherwise
merge with the frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_bar.runtime.errors import BarError

ROLES = ("system", "user", "assistant", "environment")

# What BAR trains its experts on: ChatML frames, tool results from the environment, no bos. The
# last reply ends with eos alone, which also ends the document when rows are packed. The layout is
# open-instruct's "olmo"; the wording of the two system sentences is ours. A model that was trained
# on theirs has it in its tokenizer's own template.
_OLMO = """\
{%- set no_functions = 'No functions are available to you.' -%}
{%- macro offered(functions) -%}
<functions>{{ functions }}</functions>
{%- endmacro -%}
{%- if messages | selectattr('role', 'equalto', 'system') | list | length == 0 -%}
{{- '<|im_start|>system\\nYou are OLMo, a helpful AI assistant built by Ai2 that can call '
    'functions. Your knowledge ends in November 2024. ' + no_functions + ' ' + offered('')
    + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set functions = message.get('functions') -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content -}}
{%- if message.get('function_calls') -%}
{{- '<function_calls>' + message.function_calls + '</function_calls>' -}}
{%- endif -%}
{{- eos_token if loop.last and not add_generation_prompt else '<|im_end|>' -}}
{%- endgeneration -%}
{%- if not loop.last or add_generation_prompt -%}{{- '\\n' -}}{%- endif -%}
{%- elif message.role == 'system' -%}
{{- message.content + ' ' -}}
{{- offered(functions) if functions else no_functions + ' ' + offered('') -}}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- message.content -}}
{%- if functions -%}{{- '\\n' + offered(functions) -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# OLMo-2 Instruct: role lines are ordinary text, every reply ends with eos.
_TULU = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role not in ('system', 'user', 'assistant') -%}
{{- raise_exception('the tulu template has no role ' + message.role) -}}
{%- endif -%}
{{- {'system': '<|system|>', 'user': '<|user|>', 'assistant': '<|assistant|>'}[message.role] -}}
{{- '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content + eos_token -}}
{%- endgeneration -%}
{%- if not loop.last or add_generation_prompt -%}{{- '\\n' -}}{%- endif -%}
{%- else -%}
{{- message.content + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

TEMPLATES = {"olmo": _OLMO, "tulu": _TULU}

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARKER = re.compile(r"<\|[^|<>]+\|>")
# Parts of a message besides its content that a template may show.
_EXTRAS = ("functions", "function_calls", "tool_calls")

Message = dict[str, Any]


def chat_template(name_or_path: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja source of a template: registered, from a .jinja file, or the tokenizer's own.

    Raises BarError if the tokenizer has none, or there is no such name or file.
    """
    if name_or_path is None:
        try:
            return tokenizer.get_chat_template()
        except ValueError:
            raise BarError(
                f"the tokenizer {tokenizer.name_or_path} has no chat template; "
                f"set chat_template to {', '.join(TEMPLATES)} or a .jinja file"
            ) from None
    if name_or_path in TEMPLATES:
        return TEMPLATES[name_or_path]
    path = Path(name_or_path)
    if path.suffix != ".jinja":
        raise BarError(
            f"chat_template {name_or_path!r} is unknown; "
            f"there are {', '.join(TEMPLATES)}, or give a .jinja file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"chat_template {path} can't be read: {error}") from None


def check_messages(messages: Any) -> None:
    """Refuse what isn't a conversation, before any template or tokenizer is at hand.

    Raises BarError for an unknown role, for content that isn't text, and for an assistant turn
    with neither content nor function calls.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BarError("messages must be a list of at least one message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise BarError(f"message {number} is {type(message).__name__}, not a role and content")
        role = message.get("role")
        if role not in ROLES:
            raise BarError(f"message {number} has role {role!r}; roles are {', '.join(ROLES)}")
        for key in ("content", "functions", "function_calls"):
            value = message.get(key)
            if value is not None and not isinstance(value, str):
                raise BarError(f"message {number}: {key} is {type(value).__name__}, not text")
        if role == "assistant":
            if not message.get("content") and not message.get("function_calls"):
                raise BarError(f"message {number}: neither content nor function_calls is given")
        elif message.get("content") is None:
            raise BarError(f"message {number}: content is missing")


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation to train on, and which of them carry loss.

    `template` is Jinja source, from `chat_template`. Keys of a message whose value is None count as
    absent.

    Raises BarError for what `check_messages` refuses; for a conversation that has no assistant turn
    or doesn't end with one, holds a marker of the template in its text (it would forge a turn), or
    has parts that the template doesn't show; for a tokenizer without eos; and for a template that
    doesn't mark replies and their ends with `{% generation %}`.
    """
    if not _GENERATION.search(template):
        raise BarError(
            "the chat template has no {% generation %}, so it doesn't say what carries loss; "
            f"put it around replies and their end token, or use {', '.join(TEMPLATES)}"
        )
    if tokenizer.eos_token is None:
        raise BarError(f"the tokenizer {tokenizer.name_or_path} has no eos token to end replies")
    check_messages(messages)
    replies = sum(message["role"] == "assistant" for message in messages)
    if not replies:
        raise BarError("the conversation has no assistant turn to learn from")
    if messages[-1]["role"] != "assistant":
        raise BarError(f"the conversation ends with a {messages[-1]['role']} turn, not a reply")
    text, spans = _text(tokenizer, messages, template, prompt=False)
    if len(spans) != replies:
        raise BarError(
            f"the chat template marks {len(spans)} of {replies} replies with {{% generation %}}"
        )
    if tail := text[spans[-1][1]:].strip():
        raise BarError(
            f"the chat template ends replies with {tail!r} outside {{% generation %}}, so that a "
            "model would never learn to stop; move it inside"
        )
    return _tokens(tokenizer, text, spans)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> list[int]:
    """Tokens that a model continues with a reply: the conversation without its last reply.

    They are what `render` puts before that reply.

    Raises BarError as `render` does, but neither a reply nor `{% generation %}` is needed.
    """
    text, spans = _prompt(tokenizer, messages, template)
    return _tokens(tokenizer, text, spans)[0]


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> tuple[list[int], str, list[tuple[int, int]]]:
    """`prompt_ids`, the text that they are the tokens of, and where in it each lies.

    Raises BarError as `prompt_ids` does.
    """
    text, spans = _prompt(tokenizer, messages, template)
    cuts = _cuts(text, spans)
    encoded = _encoded(tokenizer, text, cuts, return_offsets_mapping=True)
    ids = [token for piece in encoded["input_ids"] for token in piece]
    return ids, text, [
        (cut + start, cut + end) for cut, piece in zip(cuts, encoded["offset_mapping"])
        for start, end in piece
    ]


def before_reply(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages without the reply that they end with, if they do."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> tuple[str, list[tuple[int, int]]]:
    """`_text` of what a model continues with a reply."""
    check_messages(messages)
    messages = before_reply(messages)
    if not messages:
        raise BarError("the conversation has nothing before its reply")
    return _text(tokenizer, messages, template, prompt=True)


def _text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str, prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and the spans of its characters that the assistant says."""
    cleaned = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None}
        cleaned.append({"content": ""} | kept)
    _check_shown(cleaned, template)
    _check_forgery(tokenizer, cleaned, template)
    try:
        # What apply_chat_template itself calls; it maps the spans to tokens less exactly than we.
        texts, spans = render_jinja_template(
            [cleaned], chat_template=template, add_generation_prompt=prompt,
            return_assistant_tokens_mask=bool(_GENERATION.search(template)),
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError) as error:
        raise BarError(f"the chat template refuses a conversation: {error}") from None
    return texts[0], spans[0] if spans else []


def _check_shown(messages: Sequence[Message], template: str) -> None:
    for number, message in enumerate(messages, 1):
        for key in _EXTRAS:
            if message.get(key) and key not in template:
                raise BarError(
                    f"message {number} has {key}, which the chat template doesn't show; "
                    "use another template or leave the conversation out"
                )


def _check_forgery(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> None:
    """Text that holds a marker would become the marker: an end of turn, or a turn of its own."""
    markers = set(_MARKER.findall(template)) | set(tokenizer.all_special_tokens)
    for number, message in enumerate(messages, 1):
        for value in message.values():
            found = isinstance(value, str) and [mark for mark in markers if mark in value]
            if found:
                raise BarError(
                    f"message {number} holds {min(found)} as text, which would forge a turn; "
                    "leave the conversation out or spell it differently"
                )


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
    """Tokenize the pieces between the ends of `spans`; those inside carry loss."""
    ids: list[int] = []
    loss_mask: list[bool] = []
    encoded = _encoded(tokenizer, text, _cuts(text, spans))
    for number, piece_ids in enumerate(encoded["input_ids"]):
        ids += piece_ids
        loss_mask += [number % 2 == 1] * len(piece_ids)
    return ids, loss_mask


def _encoded(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int], **more: bool
) -> BatchEncoding:
    """The pieces of the text between the cuts, each tokenized by itself."""
    return tokenizer([text[start:end] for start, end in pairwise(cuts)],
                     add_special_tokens=False, verbose=False, **more)


def _cuts(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Where the text is cut into pieces that are tokenized by themselves."""
    return [0, *(cut for span in spans for cut in span), len(text)]
