"""Kinds and speakers of tokens, on the real tokenizer's kind of pieces."""

from __future__ import annotations

import pytest

from megatron_bar.data import toy
from megatron_bar.data.chat import prompt_ids
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.evaluation.token_kinds import KINDS, SPEAKERS, label_tokens

TEXTS = [
    "Add 12 and 345 to it, please: what is 12 + 345?",
    "def f(x):\n    return x * 12 + 7",
    "The answer is 357.",
    "naïve café 東京 ñ",
] * 30


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, 400, tmp_path_factory.mktemp("tokenizer"), toy.CHAT_TEMPLATE)


def spoken(tokenizer, answer_text: str, *turns: tuple[str, str]):
    messages = [{"role": role, "content": content} for role, content in turns]
    answer = [
        *tokenizer(answer_text, add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    return messages, label_tokens(tokenizer, tokenizer.get_chat_template(), messages, answer)


def texts_of(found, names, indices_T, name: str) -> str:
    return "".join(text for text, index in zip(found.texts, indices_T) if names[index] == name)


def test_speakers_and_kinds(tokenizer):
    question, code = "Add 12 and 345, please.", "def f(x):\n    return x * 12"
    messages, found = spoken(tokenizer, code, ("user", question))
    prompt = prompt_ids(tokenizer, messages, tokenizer.get_chat_template())
    assert found.ids[: len(prompt)] == prompt and found.ids[-1] == tokenizer.eos_token_id
    assert len(found.ids) == len(found.texts) == len(found.kinds_T) == len(found.speakers_T)
    assert texts_of(found, SPEAKERS, found.speakers_T, "user").strip() == question
    assert texts_of(found, SPEAKERS, found.speakers_T, "assistant").startswith(code)
    assert texts_of(found, KINDS, found.kinds_T, "digits").replace(" ", "") == "12345"
    assert texts_of(found, KINDS, found.kinds_T, "code").split() == code.split()
    assert texts_of(found, KINDS, found.kinds_T, "punctuation") == ",."
    words = texts_of(found, KINDS, found.kinds_T, "words")
    assert "please" in words and "return" not in words
    assert KINDS[found.kinds_T[-1]] == "template" and "<|im_start|>" in texts_of(
        found, KINDS, found.kinds_T, "template"
    )


def test_a_reply_at_the_end_is_replaced_and_turns_keep_their_speakers(tokenizer):
    _, found = spoken(
        tokenizer,
        "The answer is 357.",
        ("user", "what is 12 + 345?"),
        ("assistant", "It is 12."),
        ("user", "what is it?"),
        ("assistant", "357"),
    )
    assert texts_of(found, SPEAKERS, found.speakers_T, "user").split("?")[:2] == [
        "what is 12 + 345",
        "what is it",
    ]
    assert texts_of(found, SPEAKERS, found.speakers_T, "assistant").startswith(
        "It is 12.The answer is 357."
    )


def test_no_character_is_lost_or_counted_twice(tokenizer):
    text = "naïve café 東京 ñ"
    _, found = spoken(tokenizer, "357", ("user", text))
    assert texts_of(found, SPEAKERS, found.speakers_T, "user").strip() == text


def test_an_empty_answer(tokenizer):
    messages = [{"role": "user", "content": "what is it?"}]
    found = label_tokens(tokenizer, tokenizer.get_chat_template(), messages, [])
    assert len(found.ids) == len(found.kinds_T) == len(found.speakers_T) > 0
