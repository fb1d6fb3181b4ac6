"""Generation, in every layout: greedy equals transformers, sampling depends on its key alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import FlexOlmoForCausalLM

from megatron_bar.launch import processes
from megatron_bar.rlvr.engine import Sampling
from megatron_bar.runtime.layout import Layout
from tests.layouts import EXPERTS
from tests.rlvr import ranks

pytestmark = pytest.mark.distributed

PROMPTS = [[(11 * i + 5 * j) % 330 + 1 for j in range(3 + 2 * i % 7)] for i in range(8)]
LENGTH = 12


@pytest.fixture
def model(two_experts) -> Path:
    return two_experts


def _generated(model: Path, layout: Layout, sampling: Sampling, out: Path) -> list[dict]:
    out.mkdir()
    processes.start(
        ranks.generate, model / "checkpoint", layout, PROMPTS, sampling, out,
        processes=layout.processes, timeout_seconds=120,
    ).wait()
    found: dict[int, dict] = {}
    for path in out.glob("responses-*.json"):
        for index, response in json.loads(path.read_text()).items():
            # Ranks of a model-parallel group have the same.
            assert found.setdefault(int(index), response)["tokens"] == response["tokens"]
    return [found[i] for i in range(len(PROMPTS))]


@pytest.mark.parametrize("layout", EXPERTS.values(), ids=EXPERTS)
def test_greedy_answers_are_those_of_transformers(model, layout, tmp_path):
    theirs = FlexOlmoForCausalLM.from_pretrained(model / "hf").eval()
    found = _generated(model, layout, Sampling(LENGTH, frozenset({7})), tmp_path / "out")
    for prompt, response in zip(PROMPTS, found):
        expected = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=7,
            pad_token_id=0,
        )[0, len(prompt):].tolist()
        assert response["tokens"] == expected
        assert response["stopped"] == (expected[-1] == 7)


def test_samples_depend_on_seed_and_key_alone(model, tmp_path):
    sampling = Sampling(LENGTH, frozenset({0}), temperature=0.8, seed=4)
    alone = _generated(model, Layout(), sampling, tmp_path / "alone")
    spread = _generated(model, EXPERTS["tp2pp2ep2"], sampling, tmp_path / "spread")
    assert [r["tokens"] for r in alone] == [r["tokens"] for r in spread]
    other = _generated(
        model, Layout(), Sampling(LENGTH, frozenset({0}), 0.8, seed=5), tmp_path / "other"
    )
    assert all(a["tokens"] != b["tokens"] for a, b in zip(alone, other))


def test_samples_come_from_the_models_distribution_at_the_temperature(model, tmp_path):
    theirs = FlexOlmoForCausalLM.from_pretrained(model / "hf").eval()
    found = _generated(
        model, Layout(), Sampling(LENGTH, frozenset({0}), temperature=0.5, seed=4), tmp_path / "out"
    )
    for prompt, response in zip(PROMPTS, found):
        tokens = torch.tensor([prompt + response["tokens"]])
        logits_V = theirs(tokens).logits[0, len(prompt) - 1 : -1] / 0.5
        expected = logits_V.log_softmax(-1).gather(1, tokens[0, len(prompt):, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response["logprobs"]), expected, atol=1e-4, rtol=0)
