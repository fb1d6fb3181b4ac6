"""Whatever is said: what carries loss is each reply and its end, as a model would write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.data import toy
from megatron_bar.data.chat import TEMPLATES, prompt_ids, render
from megatron_bar.data.tokenizer import train_tokenizer
from tests.data.test_chat import replies, runs
from tests.properties import examples

# What tokenizers merge, what templates cut, what takes several bytes. No bar, so no special token.
words = st.text(st.sampled_from("ab<>{}/%: \n\t\r.'\"0é你😀\u200d"), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["a b ab: {a}\n\nb", "<a>0.0</a>", *toy.texts("general", "train", 20, 0)]
    return train_tokenizer(texts, 330, tmp_path_factory.mktemp("tokenizer"), TEMPLATES["olmo"])


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [
            {"role": "user", "content": draw(words)},
            {"role": "assistant", "content": draw(words)},
        ]
    return messages


@pytest.mark.slow
@pytest.mark.parametrize("template", ["olmo", "tulu"])
@examples
@given(messages=conversations())
def test_loss_is_on_replies_and_prompts_are_how_training_begins(tokenizer, template, messages):
    ids, loss_mask = render(tokenizer, messages, TEMPLATES[template])
    said = [run for carries, run in runs(ids, loss_mask) if carries]
    expected = list(replies(messages, template))
    assert [tokenizer.decode(run) for run in said] == expected
    assert said == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in expected]
    starts = [at for at, loss in enumerate(loss_mask) if loss and not loss_mask[at - 1]]
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    for start, turn in zip(starts, turns, strict=True):
        assert prompt_ids(tokenizer, messages[:turn], TEMPLATES[template]) == ids[:start]
