"""A turn behind what a model said: the tokens of training, and templates that rewrite history."""

from __future__ import annotations

import pytest

from megatron_bar.data.chat import TEMPLATES, prompt_ids, render
from megatron_bar.data.next_turn import check_turns, turn_ids
from megatron_bar.runtime.errors import BarError
from tests.data.test_templates import CHATML, OWN, says, user

ASKED = [user("What is 2+3?")]
TOOL = {"role": "environment", "content": "5\n"}


@pytest.mark.parametrize(
    "template, turn, end",
    [
        (TEMPLATES["olmo"], TOOL, "<|im_end|>"),
        (TEMPLATES["olmo"], user("\nSure?"), "<|im_end|>"),
        (TEMPLATES["tulu"], user("Sure?"), "<|endoftext|>"),
        (OWN, user("Sure?"), "<|endoftext|>"),
        (CHATML, TOOL, "<|im_end|>"),
    ],
    ids=["olmo", "olmo user", "tulu", "own", "chatml"],
)
def test_what_follows_is_what_training_reads(dolma2, template, turn, end):
    reply = "\n\n<function_calls>add(2, 3)</function_calls> "
    check_turns(dolma2, template)
    said = dolma2(reply + end, add_special_tokens=False)["input_ids"]
    ids = [
        *prompt_ids(dolma2, ASKED, template),
        *said,
        *turn_ids(dolma2, ASKED, reply, turn, template),
    ]
    whole = [*ASKED, says(reply), turn, says("It is 5.")]
    assert ids == prompt_ids(dolma2, whole, template)
    rendered, _ = render(dolma2, whole, template)
    assert rendered[: len(ids)] == ids


_TRIMS = CHATML.replace("m.content }}", "m.content | trim }}")
_FORGETS = CHATML.replace("m.content }}", "m.content.split('</think>')[-1] }}")
_PROMPTS = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>' }}{% endif")


@pytest.mark.parametrize(
    "template", [_TRIMS, _FORGETS, _PROMPTS], ids=["trims", "forgets thoughts", "asks for thoughts"]
)
def test_a_template_that_rewrites_history_is_refused(dolma2, template):
    assert template != CHATML
    with pytest.raises(BarError, match="the chat template rewrites what the model said") as error:
        check_turns(dolma2, template)
    assert len(str(error.value).splitlines()) == 1


def test_one_that_answers_in_no_role_is_refused(dolma2):
    alone = "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}" + CHATML
    with pytest.raises(BarError, match="the chat template refuses a conversation: one only"):
        check_turns(dolma2, alone)
