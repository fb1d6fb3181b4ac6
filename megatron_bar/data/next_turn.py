"""Tokens of a turn that answers what a model has just said, behind the tokens that it said.

A chat template writes whole conversations. Where a model goes on talking, what was said must stay
as it is: the template has to write the reply's words as they were generated, behind the text that
asked for them. Then all that it writes behind the reply's end is the next turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.chat import as_shown
from megatron_bar.data.message_keys import CONTENT
from megatron_bar.data.messages import Message, check_messages
from megatron_bar.data.rendering import run_template
from megatron_bar.data.replies import ends_of_turn
from megatron_bar.runtime.errors import BarError

_ROLES = ("environment", "user")
# Replies that templates are known to change once they are history: spaces around, and thoughts.
_REPLIES = ("a", " a \n", "<think>\na\n</think>\n\na")


class RewrittenReply(BarError):
    """A template writes a reply otherwise than the model said it."""


def turn_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    reply: str,
    turn: Message,
    template: str,
) -> list[int]:
    """The tokens from behind a reply's end token to where the model speaks again.

    `messages`, as the template gets them, are what the reply answers, `turn` is what answers it.
    Whichever end token the template writes behind the reply, the model's own stands there.

    Raises RewrittenReply if the text that asks for the reply, its words and an end token aren't how
    the longer conversation begins; BarError for a turn that isn't one, or would forge one.
    """
    check_messages([turn])
    shown = as_shown(tokenizer, [turn], template)
    said = reply_message(reply)
    asked = run_template(tokenizer, messages, template, True)[0]
    whole = run_template(tokenizer, [*messages, said, *shown], template, True)[0]
    for end in ends_of_turn(tokenizer):
        if whole.startswith(before := asked + reply + end):
            behind = whole[len(before) :]
            return tokenizer(behind, add_special_tokens=False, verbose=False)["input_ids"]
    raise RewrittenReply(
        f"the chat template rewrites what the model said ({reply[-40:]!r}) once a turn follows it, "
        "so that the tokens of the conversation aren't those that were generated; use a template "
        "that leaves replies as they are"
    )


def reply_message(reply: str) -> Message:
    """The message of a reply, with the words as the model said them."""
    return {"role": "assistant", CONTENT: reply}


def check_turns(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Raise RewrittenReply for a template that can't go on with what a model said.

    It has to know one of the roles that answer a model, or BarError says what it has against them.
    """
    refused = []
    for role in _ROLES:
        messages = [{"role": "user", CONTENT: "a"}]
        try:
            for reply in _REPLIES:
                turn = {"role": role, CONTENT: "a"}
                turn_ids(tokenizer, messages, reply, turn, template)
                messages += [reply_message(reply), turn]
        except RewrittenReply:
            raise
        except BarError as error:
            refused.append(error)
    if len(refused) == len(_ROLES):
        raise refused[0]
