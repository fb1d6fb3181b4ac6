"""Chat templates, and which tokens carry loss.

What the assistant says carries loss: its words, its function calls and the token that ends its
turn. `replies` finds these places; a turn with `loss: False` has none.

Text is tokenized piece by piece, cut where the assistant begins and stops to speak. A token can
then never lie half inside a reply, and the tokens of a prompt are the same at training and at
inference, even before a reply that begins with a line break, which a tokenizer would otherwise
merge with the frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from transformers import BatchEncoding, PreTrainedTokenizerBase

from megatron_bar.data.chat_templates import TEMPLATES
from megatron_bar.data.message_keys import (
    CONTENT,
    FUNCTION_CALLS,
    FUNCTIONS,
    LOSS,
    PARTS,
    REASONING,
    is_reported,
)
from megatron_bar.data.messages import Message, check_messages
from megatron_bar.data.rendering import Span, run_template, template_facts
from megatron_bar.data.replies import (
    MARKER,
    UnprovenReplies,
    check_end,
    ends_of_turn,
    proven_spans,
)
from megatron_bar.runtime.errors import BarError

# Keys that a conversation can't do without, where it has them.
_NEEDED = (FUNCTIONS, FUNCTION_CALLS, "tool_calls")


def chat_template(name_or_path: str | None, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The Jinja source of a template: registered, from a .jinja file, or the tokenizer's own.

    A name or path needs no tokenizer.

    Raises BarError, naming where the template is from, if the tokenizer has none, there is no such
    name or file, or what is there is empty, no template or one whose text changes by itself.
    """
    source = _source(name_or_path, tokenizer)
    if not source.strip():
        raise BarError(
            f"{_from(name_or_path, tokenizer)} is empty, and would show a model nothing "
            f"of a conversation; name {', '.join(TEMPLATES)} or another .jinja file"
        )
    try:
        template_facts(source)
    except BarError as error:
        raise BarError(f"{_from(name_or_path, tokenizer)}: {error}") from None
    return source


def _from(name_or_path: str | None, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Where a template is from, for messages."""
    if name_or_path is None:
        assert tokenizer is not None
        return f"the chat template of the tokenizer {tokenizer.name_or_path}"
    return f"chat_template {name_or_path}"


def _source(name_or_path: str | None, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if name_or_path is None:
        assert tokenizer is not None
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
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BarError(f"chat_template {path} is not a file; correct the path") from None
    except OSError as error:
        raise BarError(f"chat_template {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BarError(
            f"chat_template {path} isn't UTF-8: {error.reason}; save it as UTF-8"
        ) from None


def differs_from_own(template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a template writes a plain chat in another way than the tokenizer's own template."""
    chat = [{"role": role, CONTENT: "x"} for role in ("user", "assistant", "user", "assistant")]
    try:
        own = chat_template(None, tokenizer)
    except BarError:
        return False  # there is no format to differ from
    try:
        return any(
            run_template(tokenizer, some, template, prompt)[0]
            != run_template(tokenizer, some, own, prompt)[0]
            for some, prompt in ((chat, False), (chat[:-1], True))
        )
    except BarError:
        return template != own


@dataclass(frozen=True)
class Rendered:
    """Tokens of a conversation to train on, and which of them carry loss.

    `notes` are what a person should know of how the template treats it, without a number in them,
    so that they can be counted over conversations.
    """

    ids: list[int]
    loss_mask: list[bool]
    notes: list[str]


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> tuple[list[int], list[bool]]:
    """The tokens of `rendered`, and which of them carry loss. Raises as it does."""
    made = rendered(tokenizer, messages, template)
    return made.ids, made.loss_mask


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> Rendered:
    """A conversation as it is trained on.

    `template` is Jinja source, from `chat_template`. Keys of a message whose value is None count as
    absent.

    Raises BarError for what `check_messages` refuses; for a conversation that has no assistant turn
    that carries loss or doesn't end with one, holds a marker of the template in its text (it would
    forge a turn), or has parts that the template doesn't show; for a tokenizer without eos; and for
    a template that fails, whose text changes by itself, of which it isn't known where replies lie,
    or that doesn't end them with a token that carries loss.
    """
    if tokenizer.eos_token is None:
        raise BarError(f"the tokenizer {tokenizer.name_or_path} has no eos token to end replies")
    check_messages(messages)
    learned = [
        message.get(LOSS) is not False for message in messages if message["role"] == "assistant"
    ]
    if not learned:
        raise BarError("the conversation has no assistant turn to learn from")
    if not any(learned):
        raise BarError("the conversation has no assistant turn that carries loss")
    if messages[-1]["role"] != "assistant":
        raise BarError(f"the conversation ends with a {messages[-1]['role']} turn, not a reply")
    shown = as_shown(tokenizer, messages, template)
    ends = ends_of_turn(tokenizer)
    text, spans = _text(tokenizer, shown, template, prompt=False)
    if len(spans) != len(learned):
        raise BarError(
            f"the chat template marks {len(spans)} of {len(learned)} replies with "
            "{% generation %}"
        )
    check_end(text, spans, ends)
    ids, inside = _tokens(tokenizer, text, spans)
    taught = [span is not None and learned[span] for span in inside]
    notes = [*_unused_keys(messages, template), *_left_out(shown, text, spans)]
    if any(message.get(FUNCTION_CALLS) for message in messages) and not any(
        message.get(FUNCTIONS) for message in messages
    ):
        notes.append("functions are called, and none are offered")
    if not all(text[start:end].rstrip().endswith(tuple(ends)) for start, end in spans[:-1]):
        notes.append(
            "a reply before the last ends outside {% generation %}, so its end isn't learned"
        )
    if not _is_asked_for(tokenizer, shown, template, text[: spans[-1][0]]):
        notes.append(
            "the text that asks for the last reply (add_generation_prompt) isn't what "
            "stands before it in training"
        )
    return Rendered(ids, taught, list(dict.fromkeys(notes)))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> list[int]:
    """Tokens that a model continues with a reply: the conversation without its last reply.

    They are what `render` puts before that reply.

    Raises BarError as `render` does, but a reply isn't needed, nor where others lie.
    """
    text, spans = _prompt(tokenizer, messages, template)
    return _tokens(tokenizer, text, spans)[0]


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> tuple[list[int], str, list[Span]]:
    """`prompt_ids`, the text that they are the tokens of, and where in it each lies.

    Raises BarError as `prompt_ids` does.
    """
    text, spans = _prompt(tokenizer, messages, template)
    cuts = _cuts(text, spans)
    encoded = _encoded(tokenizer, text, cuts, return_offsets_mapping=True)
    ids = [token for piece in encoded["input_ids"] for token in piece]
    return (
        ids,
        text,
        [
            (cut + start, cut + end)
            for cut, piece in zip(cuts, encoded["offset_mapping"])
            for start, end in piece
        ],
    )


def before_reply(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages without the reply that they end with, if they do."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> tuple[str, list[Span]]:
    """`_text` of what a model continues with a reply."""
    check_messages(messages)
    messages = before_reply(messages)
    if not messages:
        raise BarError("the conversation has nothing before its reply")
    shown = as_shown(tokenizer, messages, template)
    try:
        return _text(tokenizer, shown, template, prompt=True)
    except UnprovenReplies:  # the text is sure; that it is cut nowhere changes few of its tokens
        return run_template(tokenizer, shown, template, True)[0], []


def _text(
    tokenizer: PreTrainedTokenizerBase, shown: Sequence[Message], template: str, prompt: bool
) -> tuple[str, list[Span]]:
    """The rendered text and the spans of its characters that the assistant says."""
    if template_facts(template).marks_replies:
        return run_template(tokenizer, shown, template, prompt)
    return proven_spans(
        lambda some, asking: run_template(tokenizer, some, template, asking)[0],
        shown,
        prompt,
        ends_of_turn(tokenizer),
    )


def as_shown(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> list[Message]:
    """The messages as the template gets them: checked, reasoning under the name that it knows."""
    words = template_facts(template).words
    known_reasoning = [name for name in REASONING if name in words]
    shown = []
    for number, message in enumerate(messages, 1):
        kept = {key: value for key, value in message.items() if value is not None and key != LOSS}
        for key in (*_NEEDED, *REASONING):
            if not kept.get(key) or key in words:
                continue
            if key not in REASONING or not known_reasoning:
                raise BarError(
                    f"message {number} has {key}, which the chat template doesn't show; "
                    "use another template or leave the conversation out"
                )
            kept[known_reasoning[0]] = kept.pop(key)
        shown.append({CONTENT: ""} | kept)
    _check_forgery(tokenizer, shown, template)
    return shown


def _check_forgery(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> None:
    """Text that holds a marker would become the marker: an end of turn, or a turn of its own."""
    markers = {*MARKER.findall(template), *tokenizer.all_special_tokens}
    for number, message in enumerate(messages, 1):
        for value in message.values():
            found = isinstance(value, str) and [mark for mark in markers if mark in value]
            if found:
                raise BarError(
                    f"message {number} holds {min(found)} as text, which would forge a turn; "
                    "leave the conversation out or spell it differently"
                )


def _is_asked_for(
    tokenizer: PreTrainedTokenizerBase, shown: Sequence[Message], template: str, before: str
) -> bool:
    """Whether the text before the last reply is what asks for it when the model is used."""
    if len(shown) == 1:
        return True  # a reply to nothing is never asked for
    try:
        return run_template(tokenizer, shown[:-1], template, True)[0] == before
    except BarError:
        return False


def _unused_keys(messages: Sequence[Message], template: str) -> Iterator[str]:
    words = template_facts(template).words
    for key in dict.fromkeys(key for message in messages for key in message):
        if is_reported(key) and key not in words:
            yield f"key {key!r} of a message isn't used"


def _left_out(shown: Sequence[Message], text: str, spans: Sequence[Span]) -> Iterator[str]:
    """The parts of messages that aren't where they should be in the text."""
    starts = [*(start for start, _ in spans), len(text)]
    replies, since = 0, 0
    for message in shown:
        role = message["role"]
        if role == "assistant":
            end, replies = spans[replies][1], replies + 1
            place, since = text[since:end], end
        else:
            place = text if role == "system" else text[since : starts[replies]]
        for key in (*PARTS, *REASONING):
            part = (message.get(key) or "").strip()
            if part not in place and json.dumps(part, ensure_ascii=False)[1:-1] not in place:
                yield f"the chat template leaves out {key} of {role} turns, or a part of it"


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]
) -> tuple[list[int], list[int | None]]:
    """The tokens, and for each the number of the span that it lies in; None outside of all.

    The pieces between the ends of `spans` are tokenized by themselves.
    """
    ids: list[int] = []
    inside: list[int | None] = []
    encoded = _encoded(tokenizer, text, _cuts(text, spans))
    for number, piece_ids in enumerate(encoded["input_ids"]):
        ids += piece_ids
        inside += [number // 2 if number % 2 else None] * len(piece_ids)
    return ids, inside


def _encoded(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int], **more: bool
) -> BatchEncoding:
    """The pieces of the text between the cuts, each tokenized by itself."""
    return tokenizer(
        [text[start:end] for start, end in pairwise(cuts)],
        add_special_tokens=False,
        verbose=False,
        **more,
    )


def _cuts(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Where the text is cut into pieces that are tokenized by themselves."""
    return [0, *(cut for span in spans for cut in span), len(text)]
