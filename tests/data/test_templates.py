"""Chat templates that people have: read rightly, refused with one line, or told about."""

from __future__ import annotations

import pytest

from megatron_bar.data.chat import (
    TEMPLATES,
    chat_template,
    differs_from_own,
    prompt_ids,
    prompt_tokens,
    render,
    rendered,
)
from megatron_bar.data.rendering import template_facts
from megatron_bar.runtime.errors import BarError

EOS, END = "<|endoftext|>", "<|im_end|>"


def user(content, **more):
    return {"role": "user", "content": content, **more}


def says(content, **more):
    return {"role": "assistant", "content": content, **more}


CHAT = [user("What is 2+2?"), says("It is 4."), user("\n"), says("\n\nWhat?\n")]
# The layout of OLMo-2-Instruct's own template, which marks nothing.
OWN = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token + ('' if loop.last else '\\n') }}"
    "{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    "{% endfor %}"
)
# As ChatML models bring it, with calls, and a default system turn.
CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nHelp.<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% if m.function_calls %}{{ '<function_calls>' + m.function_calls + '</function_calls>' }}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REPLY = "{% generation %}{{ m.content + eos_token }}{% endgeneration %}"


def marked(reply: str = REPLY, before: str = "") -> str:
    return before + (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        + reply
        + "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def learned(tokenizer, messages, template) -> str:
    ids, loss_mask = render(tokenizer, messages, template)
    return tokenizer.decode([token for token, loss in zip(ids, loss_mask) if loss])


@pytest.mark.parametrize(
    "messages",
    [
        CHAT,
        CHAT[:2],
        [{"role": "system", "content": "s"}, *CHAT],
        [CHAT[0], says("BAD", loss=False), *CHAT],
    ],
    ids=["two", "one", "system", "no loss"],
)
def test_the_models_own_format_is_proven(dolma2, messages):
    """The same tokens and the same loss as the template that marks its replies."""
    assert render(dolma2, messages, OWN) == render(dolma2, messages, TEMPLATES["tulu"])
    assert prompt_ids(dolma2, messages, OWN) == prompt_ids(dolma2, messages, TEMPLATES["tulu"])
    assert prompt_tokens(dolma2, messages, OWN) == prompt_tokens(
        dolma2, messages, TEMPLATES["tulu"]
    )
    ids, _ = render(dolma2, messages, OWN)
    assert ids[: len(prompt := prompt_ids(dolma2, messages, OWN))] == prompt


def test_a_proven_end_of_turn_and_calls(dolma2):
    messages = [user("Go"), says("", function_calls="f()"), user("b"), says("Done")]
    assert learned(dolma2, messages, CHATML) == (
        f"<function_calls>f()</function_calls>{END}Done{END}"
    )
    assert rendered(dolma2, messages, CHATML).notes == [
        "functions are called, and none are offered"
    ]


ALWAYS_OPEN = CHATML.replace("{% if add_generation_prompt %}", "{% if true %}")
NEVER_OPEN = CHATML.replace("{% if add_generation_prompt %}", "{% if false %}")
NO_END = CHATML.replace("<|im_end|>", "")
DROPS_THOUGHT = CHATML.replace("m.content }}", "m.content.split('</think>')[-1] }}")
STRIPS_HISTORY = CHATML.replace(
    "m.content }}", "(m.content if loop.last else m.content.split('</think>')[-1]) }}"
)
OPENS_THOUGHT = CHATML.replace(
    "'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>' }}"
)


@pytest.mark.parametrize(
    "template, messages, reason",
    [
        (NEVER_OPEN, CHAT, "it opens no reply when it is asked for one"),
        (ALWAYS_OPEN, CHAT, "it opens no reply when it is asked for one"),
        (NO_END, CHAT[:2], "no token ends message 2"),
        (
            DROPS_THOUGHT,
            [user("a"), says("<think>b</think>c")],
            "the content of message 2 isn't where",
        ),
        (
            DROPS_THOUGHT,
            [user("a"), says(f"<think>{'b' * 999}</think>c")],
            "the content of message 2",
        ),
        (
            STRIPS_HISTORY,
            [user("a"), says("<think>b</think>c"), user("d"), says("e")],
            "the content of message 2 isn't where",
        ),
        (
            OPENS_THOUGHT,
            [user("a"), says("b")],
            "the text that asks for message 2 isn't what stands",
        ),
        (
            OWN,
            [user("a"), says("b"), says("c")],
            "the text that asks for message 3 isn't what stands",
        ),
    ],
)
def test_what_cannot_be_proven_is_refused(dolma2, template, messages, reason):
    with pytest.raises(BarError) as error:
        render(dolma2, messages, template)
    refusal = "has no {% generation %}, and where its replies lie can't be proven: " + reason
    assert refusal in str(error.value) and "\n" not in str(error.value)
    assert prompt_ids(dolma2, messages, template)  # a prompt needs no proof


def test_a_thought_that_the_prompt_opens_is_proven(dolma2):
    messages = [user("a"), says("<think>b</think>c")]
    assert learned(dolma2, messages, OPENS_THOUGHT) == f"b</think>c{END}"


def test_an_end_that_is_not_learned_is_refused(dolma2):
    for reply in (
        "{% generation %}{{ m.content }}{% endgeneration %}",
        "{% generation %}{{ m.content }}\n{% endgeneration %}",
    ):
        with pytest.raises(BarError, match="has no end token, such as eos_token") as error:
            render(dolma2, CHAT, marked(reply))
        assert "\n" not in str(error.value)
    with pytest.raises(BarError, match="outside"):
        render(
            dolma2,
            CHAT,
            marked("{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}"),
        )
    assert (
        learned(
            dolma2,
            CHAT[:2],
            marked("{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"),
        )
        == f"It is 4.{END}\n"
    )


@pytest.mark.parametrize(
    "template, messages, note",
    [
        (
            marked(
                "{% generation %}{{ m.content }}{% if loop.last %}{{ eos_token }}{% endif %}"
                "{% endgeneration %}{% if not loop.last %}{{ '<|im_end|>' }}{% endif %}"
            ),
            CHAT,
            "a reply before the last ends outside {% generation %}, so its end isn't learned",
        ),
        (
            marked(
                "{% generation %}{{ m.content.split('</think>')[-1] + eos_token }}"
                "{% endgeneration %}"
            ),
            [user("a"), says("<think>b</think>c")],
            "the chat template leaves out content of assistant turns, or a part of it",
        ),
        (
            marked(REPLY + "{% if false %}{{ m.reasoning_content }}{% endif %}"),
            [user("a"), says("c", reasoning_content="b")],
            "the chat template leaves out reasoning_content of assistant turns, or a part of it",
        ),
        (
            OWN,
            [user("a"), {"role": "environment", "content": "3"}, says("b")],
            "the chat template leaves out content of environment turns, or a part of it",
        ),
        (
            marked().replace("{% if add_generation_prompt %}", "{% if false %}"),
            CHAT,
            "the text that asks for the last reply (add_generation_prompt) isn't what stands "
            "before it in training",
        ),
        (
            TEMPLATES["olmo"],
            [user("a", country="NO"), says("b", id=3)],
            "key 'country' of a message isn't used",
        ),
    ],
)
def test_what_a_template_does_is_reported(dolma2, template, messages, note):
    assert rendered(dolma2, messages, template).notes == [note]
    assert rendered(dolma2, CHAT, TEMPLATES["olmo"]).notes == []


def test_reasoning_goes_where_the_template_shows_it(dolma2):
    template = marked(
        "{% generation %}{% if m.thinking %}{{ '<think>' + m.thinking + '</think>' }}"
        "{% endif %}{{ m.content + eos_token }}{% endgeneration %}"
    )
    for key in ("thinking", "reasoning", "reasoning_content"):
        messages = [user("a"), says("c", **{key: "b"})]
        assert learned(dolma2, messages, template) == f"<think>b</think>c{EOS}"
        with pytest.raises(BarError, match=f"message 2 has {key}, which the chat template"):
            render(dolma2, messages, TEMPLATES["olmo"])


@pytest.mark.parametrize(
    "before",
    [
        "{{ strftime_now('%d %B %Y') }}",
        "{% if strftime_now is defined %}{% set date = strftime_now('%Y') %}{% endif %}",
        "{{ ['a', 'b'] | random }}",
        "{{ lipsum() }}",
    ],
)
def test_a_text_that_changes_by_itself_is_refused(dolma2, before):
    for function in (render, prompt_ids):
        with pytest.raises(BarError, match="the chat template is another one each time") as error:
            function(dolma2, CHAT, marked(before=before))
        assert "\n" not in str(error.value)
    render(dolma2, CHAT, marked(before="{# strftime_now('%Y') #}"))


@pytest.mark.parametrize(
    "before, fault",
    [
        ("{{ 1 // 0 }}", "fails in line 1: ZeroDivisionError"),
        ("\n\n{% for i in range(10**9) %}{% endfor %}", "fails in line 3: OverflowError"),
        ("{{ 'a' + 3 }}", "fails in line 1: TypeError"),
        ("{{ messages[0].content.x.y }}", "refuses a conversation: .* has no attribute 'x'"),
        ("{{ messages.pop() }}", "refuses a conversation: .*pop"),
        ("{% for %}", "is broken in line 1"),
        ("\n{% include 'x' %}", "the chat template"),
    ],
)
def test_a_template_that_fails(dolma2, before, fault):
    for function in (render, prompt_ids):
        with pytest.raises(BarError, match=fault) as error:
            function(dolma2, CHAT, marked(before=before))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tag", ["{%+ generation %}", "{%- generation -%}", "{%generation%}", "{%\n generation\n%}"]
)
def test_the_mark_in_any_dress(dolma2, tag):
    assert learned(dolma2, CHAT[:2], marked(REPLY.replace("{% generation %}", tag))) == (
        f"It is 4.{EOS}"
    )


def test_a_comment_marks_nothing():
    assert template_facts(marked()).marks_replies
    comment = "{# {% generation %} function_calls #}{{ '{% generation %}' }}"
    facts = template_facts(marked("", before=comment))
    assert not facts.marks_replies and "function_calls" not in facts.words


def test_a_format_that_is_not_the_models_own(dolma2, monkeypatch):
    assert not differs_from_own(TEMPLATES["olmo"], dolma2)  # it has none
    monkeypatch.setattr(dolma2, "chat_template", OWN)
    assert chat_template(None, dolma2) == OWN
    assert differs_from_own(TEMPLATES["olmo"], dolma2)
    assert not differs_from_own(TEMPLATES["tulu"], dolma2)
    assert not differs_from_own(OWN, dolma2)
    assert differs_from_own("{{ 1 // 0 }}", dolma2)
