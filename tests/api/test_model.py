"""A model in memory: its answers as they come, what its experts had, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar import BarError, load
from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.rollouts import MegatronEngine
from megatron_bar.generation.stream import stream_tokens

QUESTION = "What is 17 + 25?"


@pytest.fixture(scope="module")
def model(two_talking):
    with load(two_talking) as loaded:
        yield loaded


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("prompt", [[5], [5, 17, 200, 3]])
def test_a_stream_is_what_the_engine_answers(model, prompt, temperature):
    sampling = Sampling(12, frozenset({7, 9}), temperature, seed=3)
    (whole,) = MegatronEngine(model._open(), 4).generate([Request(prompt)], sampling)
    streamed = list(stream_tokens(model._open(), prompt, sampling))
    assert [token.id for token in streamed] == whole.tokens
    assert [token.logprob for token in streamed] == pytest.approx(whole.logprobs, abs=1e-5)
    assert streamed[-1].ends == whole.stopped
    for token in streamed:
        assert sum(token.shares) == pytest.approx(1) and len(token.shares) == 2


def test_a_stream_ends_where_the_positions_do(model):
    positions = model.config.max_position_embeddings
    prompt, sampling = [5] * (positions - 3), Sampling(50, frozenset())
    streamed = list(stream_tokens(model._open(), prompt, sampling))
    (whole,) = MegatronEngine(model._open(), 1).generate([Request(prompt)], sampling)
    assert [token.id for token in streamed] == whole.tokens and len(streamed) == 3


def test_words_make_up_the_answer(model):
    options = dict(max_new_tokens=24, temperature=1.0, seed=1)
    words = list(model.stream(QUESTION, **options))
    reply = model.reply(QUESTION, **options)
    assert reply.text == "".join(word.text for word in words) and len(words) == len(reply.tokens)
    ids = [token.id for token in reply.tokens if not token.ends]
    decoded = model._text(ids)
    assert reply.text == decoded.rstrip("\ufffd")
    assert list(reply.shares) == ["anchor", "expert1"]
    assert sum(reply.shares.values()) == pytest.approx(1)


def test_an_expert_that_is_left_out_has_no_share(model):
    model.leave_out("expert1")
    assert model.reply(QUESTION, max_new_tokens=3).shares == {"anchor": 1.0, "expert1": 0.0}
    model.leave_out()
    assert model.reply(QUESTION, max_new_tokens=3).shares["expert1"] > 0
    with pytest.raises(BarError, match="there is no expert 'law'; there are anchor, expert1"):
        model.leave_out("law")


def test_a_chat_remembers_what_was_said(model):
    chat = model.chat(system="Be short.", max_new_tokens=6, temperature=1.0)
    first = chat.ask(QUESTION)
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == first.text
    second = chat.ask("And 18 + 25?")
    asked = [*chat.messages[:3], {"role": "user", "content": "And 18 + 25?"}]
    assert second == model.reply(asked, max_new_tokens=6, temperature=1.0)


def test_an_answer_that_is_left_early_is_remembered_so_far(model):
    options = dict(max_new_tokens=9, temperature=1.0)
    seed = next(
        seed for seed in range(50) if len(model.reply(QUESTION, seed=seed, **options).tokens) == 9
    )
    chat = model.chat(seed=seed, **options)
    stream = chat.stream(QUESTION)
    said = "".join(next(stream).text for _ in range(4))
    stream.close()
    assert said and chat.messages[-1] == {"role": "assistant", "content": said}


def test_a_conversation_that_is_too_long_is_refused_and_not_remembered(model):
    chat = model.chat()
    with pytest.raises(BarError, match=r"the prompt has \d+ tokens, which leaves no room"):
        chat.ask("how " * 600)
    assert chat.messages == []


def test_log_probabilities_are_those_of_the_stream(model):
    prompt, sampling = [5, 17, 200], Sampling(6, frozenset())
    streamed = list(stream_tokens(model._open(), prompt, sampling))
    (said,) = model.logprobs([[*prompt, *(token.id for token in streamed)]])
    assert said[2:] == pytest.approx([token.logprob for token in streamed], abs=1e-5)


def test_the_last_model_that_is_closed_takes_megatrons_state_down(dense_talking):
    assert not parallel_state.is_initialized() or dist.is_initialized()
    before = torch.random.get_rng_state()
    one, other = load(dense_talking), load(dense_talking)
    assert torch.equal(torch.random.get_rng_state(), before), "loading drew the user's numbers"
    one.close()
    one.close()
    with pytest.raises(BarError, match="the model is closed"):
        one.reply(QUESTION)
    assert other.reply(QUESTION, max_new_tokens=2).shares == {}
    other.close()


def test_a_process_of_a_group_loads_none(dense_talking, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    from megatron_bar.api.model import _OneProcess

    with pytest.raises(BarError, match="belongs to a group of processes already"):
        _OneProcess().enter()
