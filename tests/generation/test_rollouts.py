"""Generation, in every layout: greedy equals transformers, sampling depends on its key alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import FlexOlmoForCausalLM

from megatron_bar.generation.engine import Sampling
from megatron_bar.runtime.layout import Layout
from tests.layouts import EXPERTS
from tests.rlvr import ranks

pytestmark = pytest.mark.distributed

# Of 1 to 7 tokens, two of them the same.
PROMPTS = [[(11 * i + 5 * j) % 330 + 1 for j in range(1 + 2 * i % 7)] for i in range(9)]
PROMPTS.append(PROMPTS[5])
LENGTH = 12
GENERATING = {name: layout for name, layout in EXPERTS.items() if layout.context == 1}


def _generated(
    model: Path, layout: Layout, sampling: Sampling, out: Path, batch_size: int = 3
) -> list[dict]:
    return ranks.generated(model / "checkpoint", layout, PROMPTS, sampling, batch_size, out)


# Tokens that end a response: some do early, which leaves their rows to others.
SAMPLING = Sampling(LENGTH, frozenset(range(0, 331, 8)), temperature=0.8, seed=4)


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory) -> list[dict]:
    found = _generated(model, Layout(), SAMPLING, tmp_path_factory.mktemp("alone") / "out")
    lengths = {len(response["tokens"]) for response in found}
    assert LENGTH in lengths and min(lengths) <= LENGTH / 2
    return found


@pytest.mark.parametrize("layout", GENERATING.values(), ids=GENERATING)
def test_greedy_answers_are_those_of_transformers(model, layout, tmp_path):
    theirs = FlexOlmoForCausalLM.from_pretrained(model / "hf").eval()
    found = _generated(model, layout, Sampling(LENGTH, frozenset({7})), tmp_path / "out")
    for prompt, response in zip(PROMPTS, found):
        expected = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=LENGTH,
            do_sample=False,
            eos_token_id=7,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert response["tokens"] == expected
        assert response["stopped"] == (expected[-1] == 7)


@pytest.mark.parametrize(
    "layout, batch_size",
    [
        ("tp1", 1),
        ("tp1", 4),
        ("tp1", 64),
        ("ep2", 2),
        ("tp2pp2ep2", 3),
    ],
)
def test_samples_depend_on_seed_and_key_alone(model, alone, layout, batch_size, tmp_path):
    """Whatever the layout and whoever else is in the batch, and as rows are refilled."""
    found = _generated(model, EXPERTS[layout], SAMPLING, tmp_path / "out", batch_size)
    assert [r["tokens"] for r in found] == [r["tokens"] for r in alone]
    assert [r["stopped"] for r in found] == [r["stopped"] for r in alone]


def test_another_seed_gives_other_samples(model, alone, tmp_path):
    other = dataclasses.replace(SAMPLING, seed=5)
    found = _generated(model, Layout(), other, tmp_path / "out")
    assert all(a["tokens"] != b["tokens"] for a, b in zip(alone, found))
    # Two samples of one prompt, by their keys.
    assert alone[5]["tokens"] != alone[-1]["tokens"]


def test_samples_come_from_the_models_distribution_at_the_temperature(model, tmp_path):
    theirs = FlexOlmoForCausalLM.from_pretrained(model / "hf").eval()
    found = _generated(
        model, Layout(), Sampling(LENGTH, frozenset({0}), temperature=0.5, seed=4), tmp_path / "out"
    )
    for prompt, response in zip(PROMPTS, found):
        tokens = torch.tensor([prompt + response["tokens"]])
        logits_V = theirs(tokens).logits[0, len(prompt) - 1 : -1] / 0.5
        expected = logits_V.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response["logprobs"]), expected, atol=1e-4, rtol=0)


def test_responses_end_where_the_models_positions_do(model, tmp_path):
    long = Sampling(200, frozenset(), temperature=1.0)
    for prompt, response in zip(PROMPTS, _generated(model, Layout(), long, tmp_path / "out")):
        assert len(prompt) + len(response["tokens"]) == 64
        assert not response["stopped"]
