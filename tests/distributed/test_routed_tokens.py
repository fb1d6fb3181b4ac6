"""How texts are routed is the same in every layout, and what transformers' routers say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from megatron_bar.evaluation.token_kinds import KINDS, SPEAKERS, LabelledText
from megatron_bar.launch import processes
from megatron_bar.models.config import ModelConfig
from tests.distributed import ranks
from tests.layouts import EXPERTS
from tests.models_hf import SIZES, imported, random_experts

EXPERTS_COUNT = 4


@pytest.fixture(scope="module", params=[4, 2], ids=["all active", "2 active"])
def routed(request, tmp_path_factory):
    """A checkpoint, texts of unequal length, and transformers' shares of each text, [T, L, E]."""
    model = random_experts(EXPERTS_COUNT, num_experts_per_tok=request.param)
    checkpoint = imported(model, tmp_path_factory.mktemp("routed"))
    rng = np.random.default_rng(5)
    texts, shares = [], []
    for length in (5, 30, 11, 12, 21, 7, 64, 9, 16):
        ids = rng.integers(SIZES["vocab_size"], size=length)
        texts.append(
            LabelledText(
                ids.tolist(),
                [str(i) for i in ids],
                rng.integers(len(KINDS), size=length).astype(np.int8),
                rng.integers(len(SPEAKERS), size=length).astype(np.int8),
            )
        )
        with torch.no_grad():
            logits = model(torch.tensor(ids)[None], output_router_logits=True).router_logits
        probs_TLE = torch.stack([layer.softmax(-1) for layer in logits], 1)
        kept = probs_TLE.topk(request.param).indices
        chosen_TLE = torch.zeros_like(probs_TLE).scatter(-1, kept, probs_TLE.gather(-1, kept))
        shares.append((chosen_TLE / chosen_TLE.sum(-1, keepdim=True)).double().numpy())
    return checkpoint, texts, shares


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["tp1", "tp2", "pp2", "dp2", "ep2", "tp2pp2ep2"])
def test_shares_are_those_of_transformers(layout, routed, tmp_path):
    checkpoint, texts, shares = routed
    layout = EXPERTS[layout]
    active = ModelConfig.load(checkpoint).experts_per_token
    if active < EXPERTS_COUNT and layout.resolved_expert_tensor > 1:
        pytest.skip("gloo gathers equal numbers of tokens only")
    processes.start(
        ranks.routed_texts,
        checkpoint,
        layout,
        texts,
        tmp_path,
        processes=layout.processes,
        timeout_seconds=120,
    ).wait()
    written = [path.read_text() for path in tmp_path.glob("*.json")]
    assert len(written) == layout.processes and len(set(written)) == 1
    found = json.loads(written[0])
    every_TLE = np.concatenate(shares)
    kinds_T = np.concatenate([text.kinds_T for text in texts])
    speakers_T = np.concatenate([text.speakers_T for text in texts])
    _compare(found, every_TLE)
    for names, indices_T, parts in (
        (KINDS, kinds_T, found["kinds"]),
        (SPEAKERS, speakers_T, found["speakers"]),
    ):
        assert set(parts) == {names[index] for index in set(indices_T.tolist())}
        for name, part in parts.items():
            _compare(part, every_TLE[indices_T == names.index(name)])
    for example, text, shares_TLE in zip(found["examples"], texts, shares):
        assert example["texts"] == text.texts
        assert np.abs(np.array(example["shares"]) - shares_TLE).max() < 1e-3


def _compare(found, shares_TLE: np.ndarray) -> None:
    assert found["tokens"] == len(shares_TLE)
    np.testing.assert_allclose(found["layers"], shares_TLE.mean(0), atol=1e-5)
    surprise_TLE = -shares_TLE * np.log(np.where(shares_TLE > 0, shares_TLE, 1))
    np.testing.assert_allclose(found["entropy"], surprise_TLE.sum(-1).mean(0), atol=1e-4)
