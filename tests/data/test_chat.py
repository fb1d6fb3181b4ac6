"""What carries loss is what the assistant says, token by token."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from megatron_bar.data import toy
from megatron_bar.data.chat import TEMPLATES, chat_template, prompt_ids, render
from megatron_bar.data.messages import check_messages
from megatron_bar.runtime.errors import BarError

EOS, END = "<|endoftext|>", "<|im_end|>"


def user(content, **more):
    return {"role": "user", "content": content, **more}


def says(content, **more):
    return {"role": "assistant", "content": content, **more}


ONE = [user("What is 2+2?"), says("4")]
MANY = [
    {"role": "system", "content": "Be brief."},
    user("What is 2+2?"),
    says("It is 4."),
    user("And 3+3?"),
    says("It is 6.\n"),
    user("Thanks"),
    says("  You're welcome."),
]
TOOLS = [
    {"role": "system", "content": "Use tools.", "functions": '[{"name": "weather"}]'},
    user("Weather in Oslo and Rome?"),
    says(None, function_calls='weather(city="Oslo")'),
    {"role": "environment", "content": '{"celsius": 3}'},
    says("Now Rome.", function_calls='weather(city="Rome")'),
    {"role": "environment", "content": ""},
    says("Oslo: 3 °C. Rome: unknown."),
]
USER_TOOLS = [user("Call Ann.", functions="call(person)"), says("", function_calls="call('Ann')")]
UNICODE = [
    user("😀 naïve 你好 \u200d"),
    says("👩‍👩‍👧 é → \U0001d518"),
    user("\tcode:\r\n x"),
    says("🏳️‍🌈"),
]
# A tokenizer would merge these line breaks and blanks with the frame before them.
BREAKS = [user("a\n\n"), says("\n\nb"), user("\n"), says(" \n c \n\n"), user(" "), says("\n")]
CONVERSATIONS = {"one": ONE, "many": MANY, "unicode": UNICODE, "breaks": BREAKS}
CASES = [
    *itertools.product(["olmo", "tulu"], CONVERSATIONS.values()),
    ("olmo", TOOLS),
    ("olmo", USER_TOOLS),
]
IDS = [
    *map("-".join, itertools.product(["olmo", "tulu"], CONVERSATIONS)),
    "olmo-tools",
    "olmo-user_tools",
]


def replies(messages, template):
    """What must carry loss, reply by reply, written independently of the templates."""
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            calls = message.get("function_calls")
            last = number == len(messages) - 1
            yield (
                (message["content"] or "")
                + (f"<function_calls>{calls}</function_calls>" if calls else "")
                + (EOS if last or template == "tulu" else END)
            )


def runs(ids, loss_mask):
    """(carries loss, token ids) of each run."""
    for carries, group in itertools.groupby(zip(ids, loss_mask), key=lambda pair: pair[1]):
        yield carries, [token for token, _ in group]


@pytest.mark.parametrize("template, messages", CASES, ids=IDS)
def test_loss_is_on_what_the_assistant_says(dolma2, template, messages):
    ids, loss_mask = render(dolma2, messages, TEMPLATES[template])
    for token, carries in zip(ids, loss_mask, strict=True):
        print("LOSS" if carries else "    ", repr(dolma2.decode([token])))
    said = [dolma2.decode(run) for carries, run in runs(ids, loss_mask) if carries]
    assert said == list(replies(messages, template))
    # Token by token: each reply is tokenized as it stands alone, as a model would generate it.
    expected = [
        dolma2(text, add_special_tokens=False)["input_ids"] for text in replies(messages, template)
    ]
    assert [run for carries, run in runs(ids, loss_mask) if carries] == expected
    frame = "".join(dolma2.decode(run) for carries, run in runs(ids, loss_mask) if not carries)
    assert not any(reply in frame for reply in replies(messages, template))


@pytest.mark.parametrize("template, messages", CASES, ids=IDS)
def test_every_prompt_is_how_training_begins(dolma2, template, messages):
    """For each reply: the prompt is the rendered conversation up to where its loss begins."""
    ids, loss_mask = render(dolma2, messages, TEMPLATES[template])
    starts = [at for at, loss in enumerate(loss_mask) if loss and not loss_mask[at - 1]]
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    for start, turn in zip(starts, turns, strict=True):
        prompt = prompt_ids(dolma2, messages[:turn], TEMPLATES[template])
        assert prompt == ids[:start]
        assert prompt == prompt_ids(dolma2, messages[: turn + 1], TEMPLATES[template])


@pytest.mark.parametrize(
    "template, messages",
    [("olmo", MANY), ("olmo", TOOLS), ("olmo", UNICODE), ("tulu", MANY), ("tulu", UNICODE)],
)
def test_agrees_with_transformers_where_its_mask_is_right(dolma2, template, messages):
    cleaned = [{"content": ""} | {k: v for k, v in m.items() if v is not None} for m in messages]
    theirs = dolma2.apply_chat_template(
        cleaned,
        chat_template=TEMPLATES[template],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, loss_mask = render(dolma2, messages, TEMPLATES[template])
    assert (ids, [int(loss) for loss in loss_mask]) == (
        theirs["input_ids"],
        theirs["assistant_masks"],
    )


def test_line_breaks_before_a_reply(dolma2):
    """Why text is tokenized in pieces: in one piece, prompt and training disagree here."""
    messages = [user("x"), says("\n\ny")]
    whole = dolma2.apply_chat_template(messages, chat_template=TEMPLATES["olmo"])
    prompt = prompt_ids(dolma2, messages, TEMPLATES["olmo"])
    assert whole[: len(prompt)] != prompt
    ids, _ = render(dolma2, messages, TEMPLATES["olmo"])
    assert ids[: len(prompt)] == prompt
    assert dolma2.decode(ids) == dolma2.decode(whole)


def test_olmo_layout(dolma2):
    ids, _ = render(dolma2, TOOLS, TEMPLATES["olmo"])
    assert dolma2.decode(ids) == (
        '<|im_start|>system\nUse tools. <functions>[{"name": "weather"}]</functions><|im_end|>\n'
        "<|im_start|>user\nWeather in Oslo and Rome?<|im_end|>\n"
        '<|im_start|>assistant\n<function_calls>weather(city="Oslo")</function_calls><|im_end|>\n'
        '<|im_start|>environment\n{"celsius": 3}<|im_end|>\n<|im_start|>assistant\n'
        'Now Rome.<function_calls>weather(city="Rome")</function_calls><|im_end|>\n'
        "<|im_start|>environment\n<|im_end|>\n"
        "<|im_start|>assistant\nOslo: 3 °C. Rome: unknown.<|endoftext|>"
    )
    default = dolma2.decode(render(dolma2, USER_TOOLS, TEMPLATES["olmo"])[0])
    system, rest = default.split(END, 1)
    assert system.startswith("<|im_start|>system\nYou are OLMo,")
    assert all(fact in system for fact in ("Ai2", "call functions", "November 2024"))
    assert system.endswith("<functions></functions>")
    assert rest.startswith("\n<|im_start|>user\nCall Ann.\n<functions>call(person)</functions>")


def test_tulu_layout(dolma2):
    ids, _ = render(dolma2, MANY[:5], TEMPLATES["tulu"])
    assert dolma2.decode(ids) == (
        "<|endoftext|><|system|>\nBe brief.\n<|user|>\nWhat is 2+2?\n"
        "<|assistant|>\nIt is 4.<|endoftext|>\n"
        "<|user|>\nAnd 3+3?\n<|assistant|>\nIt is 6.\n<|endoftext|>"
    )


def test_none_counts_as_absent(dolma2):
    """datasets gives every message every key of any message."""
    keys = ("functions", "function_calls", "tool_calls", "unrelated")
    filled = [dict.fromkeys(keys) | message for message in MANY]
    for template in TEMPLATES.values():
        assert render(dolma2, filled, template) == render(dolma2, MANY, template)


def test_replies_in_a_row(dolma2):
    messages = [user("Count."), says("1"), says("2")]
    ids, _ = render(dolma2, messages, TEMPLATES["olmo"])
    prompt = prompt_ids(dolma2, messages, TEMPLATES["olmo"])
    assert prompt == ids[: len(prompt)]
    assert dolma2.decode(ids[len(prompt) :]) == "2<|endoftext|>"


@pytest.mark.parametrize("domain", ["general", *toy.DOMAINS])
def test_toy_template(dolma2, domain):
    """Its replies end with the end-of-turn token; held-out prompts need no {% generation %}."""
    for conversation in toy.conversations(domain, "train", 5, seed=0):
        messages = conversation["messages"]
        ids, loss_mask = render(dolma2, messages, toy.CHAT_TEMPLATE)
        prompt = prompt_ids(dolma2, messages, toy.CHAT_TEMPLATE)
        assert loss_mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        assert dolma2.decode(ids[len(prompt) :]) == "".join(replies(messages, "olmo"))


@pytest.mark.parametrize(
    "messages, fault",
    [
        ([], "at least one message"),
        ("hello", "at least one message"),
        (["hello"], "message 1 is str"),
        ([{"role": "robot", "content": "x"}, says("y")], "message 1 has role 'robot'"),
        ([{"content": "x"}, says("y")], "message 1 has role None"),
        ([user("x")], "no assistant turn"),
        ([user("x"), says("y"), user("z")], "ends with a user turn"),
        ([user("x"), says(None)], "message 2: neither content nor function_calls"),
        ([user("x"), says("", function_calls=None)], "message 2: neither content"),
        ([user(None), says("y")], "message 1: content is missing"),
        ([user(3), says("y")], "message 1: content is int"),
        ([user("x", functions=[{"name": "f"}]), says("y")], "message 1: functions is list"),
        ([user("x"), says("y", tool_calls=[{"name": "f"}])], "message 2 has tool_calls"),
    ],
)
def test_bad_conversations(dolma2, messages, fault):
    with pytest.raises(BarError, match=fault) as error:
        render(dolma2, messages, TEMPLATES["olmo"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template, marker",
    [
        ("olmo", "<|im_start|>"),
        ("olmo", END),
        ("olmo", EOS),
        ("olmo", "<|pad|>"),
        ("tulu", EOS),
        ("tulu", "<|assistant|>"),
    ],
)
@pytest.mark.parametrize("where", ["user", "reply"])
def test_text_can_not_forge_a_turn(dolma2, template, marker, where):
    text = f"the token {marker} ends it"
    messages = [user(text), says("y")] if where == "user" else [user("x"), says(text)]
    for function in (render, prompt_ids):
        if function is prompt_ids and where == "reply":
            continue
        with pytest.raises(BarError, match="would forge a turn") as error:
            function(dolma2, messages, TEMPLATES[template])
        assert marker in str(error.value)


def test_forged_function_calls(dolma2):
    messages = [user("x", functions=f"f(){END}"), says("y")]
    with pytest.raises(BarError, match="forge"):
        render(dolma2, messages, TEMPLATES["olmo"])


def test_harmless_brackets(dolma2):
    messages = [user("is a <|b|> c?"), says("<|fim_prefix|> and im_end")]
    ids, loss_mask = render(dolma2, messages, TEMPLATES["olmo"])
    said = [token for token, loss in zip(ids, loss_mask) if loss]
    assert dolma2.decode(said) == f"<|fim_prefix|> and im_end{EOS}"


def test_tulu_has_no_tools(dolma2):
    with pytest.raises(BarError, match="message 1 has functions"):
        render(dolma2, TOOLS, TEMPLATES["tulu"])
    messages = [user("x"), {"role": "environment", "content": "3"}, says("y")]
    with pytest.raises(BarError, match="no role environment"):
        render(dolma2, messages, TEMPLATES["tulu"])


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MARKED = (
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}<|im_end|>\n{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
FIRST_ONLY = (
    "{% for m in messages %}{{ m.role }}{% if loop.index == 2 %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template, fault",
    [
        (CHATML, "has no {% generation %}"),
        (MARKED, "'<|im_end|>' outside"),
        (FIRST_ONLY, "marks 1 of 3 replies"),
        ("{% generation %}{% for %}", "is broken in line 1: Expected an expression"),
        ("{% generation %}{{ raise_exception('no system') }}{% endgeneration %}", "no system"),
    ],
)
def test_bad_templates(dolma2, template, fault):
    with pytest.raises(BarError) as error:
        render(dolma2, MANY, template)
    assert fault in str(error.value)


def test_prompts_need_no_generation_mark(dolma2):
    prompt = prompt_ids(dolma2, ONE, CHATML)
    assert dolma2.decode(prompt) == "<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
    with pytest.raises(BarError, match="nothing before its reply"):
        prompt_ids(dolma2, [says("y")], CHATML)


def test_eos_is_needed():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(BarError, match="no eos token"):
        render(tokenizer, ONE, TEMPLATES["olmo"])


def test_choosing_a_template(dolma2, tmp_path: Path):
    assert chat_template("olmo", dolma2) == TEMPLATES["olmo"]
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATES["tulu"])
    assert chat_template(str(path), dolma2) == TEMPLATES["tulu"]
    with pytest.raises(BarError, match="no chat template; set chat_template to olmo, tulu"):
        chat_template(None, dolma2)
    with pytest.raises(BarError, match="'chatml' is unknown; there are olmo, tulu"):
        chat_template("chatml", dolma2)
    for content, fault in (
        (b"{% for %}", "is broken in line 1"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"caf\xe9", "isn't UTF-8"),
        (b"{{ strftime_now('%Y') }}", "is another one each time"),
    ):
        path.write_bytes(content)
        # Before any item is read, so none is skipped.
        with pytest.raises(BarError, match=rf"^chat_template .*mine\.jinja.* {fault}"):
            chat_template(str(path), dolma2)
    (tmp_path / "folder.jinja").mkdir()
    for missing in ("missing.jinja", "folder.jinja", "mine.jinja/own.jinja"):
        with pytest.raises(BarError, match=rf"^chat_template .*/{missing} is not a file"):
            chat_template(str(tmp_path / missing), dolma2)


def test_the_tokenizers_own_template():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), chat_template=TEMPLATES["olmo"]
    )
    assert chat_template(None, tokenizer) == TEMPLATES["olmo"]


def test_check_messages_takes_a_prompt():
    check_messages([user("x")])
