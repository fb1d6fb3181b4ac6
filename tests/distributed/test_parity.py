"""transformers is the judge: logits, loss and every gradient, in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import slots
from megatron_bar.launch import processes
from megatron_bar.models.config import ModelConfig
from tests import models_hf
from tests.distributed import ranks
from tests.layouts import DENSE, EXPERTS
from tests.models_hf import imported, packed_batch, random_experts, random_model, reference

LOGITS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


def _compare(hf_model, layout, folder: Path) -> None:
    checkpoint = imported(hf_model, folder)
    batch = packed_batch(hf_model.config.vocab_size)
    (folder / "gradients").mkdir()
    processes.start(
        ranks.logits_and_gradients,
        checkpoint,
        layout,
        batch,
        folder,
        processes=layout.processes,
        timeout_seconds=120,
    ).wait()
    expected_logits, expected_loss, expected = reference(hf_model, batch)
    parts = [torch.load(file) for file in sorted(folder.glob("logits-*.pt"))]
    logits = torch.cat(parts)[..., : hf_model.config.vocab_size]
    difference = (logits - expected_logits).abs().max() / expected_logits.abs().max()
    assert logits.shape == expected_logits.shape and difference < LOGITS_TOLERANCE
    assert json.loads((folder / "loss.json").read_text())["loss"] == pytest.approx(
        expected_loss, rel=1e-5
    )
    reader = CheckpointReader(folder / "gradients")
    worst, compared = 0.0, 0
    for slot in slots(ModelConfig.load(folder / "checkpoint")):
        for name, gradient in zip(slot.hf_names, slot.to_hf(reader.read(slot))):
            error = ((gradient - expected[name]).norm() / expected[name].norm()).item()
            assert error < GRADIENT_TOLERANCE, f"{name}: {error:.2e}"
            worst, compared = max(worst, error), compared + 1
    assert compared == len(expected)
    print(f"relative differences: logits {difference:.1e}, worst gradient {worst:.1e}")


# The first of a kind in every layout, the others in those that could break what is new in them.
DENSE_IN = [("OLMo-2", layout) for layout in DENSE] + [
    (name, layout)
    for name in models_hf.DENSE
    if name != "OLMo-2"
    for layout in ("tp1", "tp2", "pp2", "tp2pp2", "tp2cp2")
]
EXPERTS_IN = [("FlexOlmo", layout) for layout in EXPERTS] + [
    (name, layout)
    for name in models_hf.MIXTURES
    if name != "FlexOlmo"
    for layout in ("tp1", "ep2", "tp2pp2ep2")
]


@pytest.mark.distributed
@pytest.mark.parametrize("name, layout", DENSE_IN, ids=" ".join)
def test_dense_equals_transformers(name, layout, tmp_path):
    """Documents and rows are longer than OLMo-3's window and than its RoPE's original length."""
    _compare(random_model(name), DENSE[layout], tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize("name, layout", EXPERTS_IN, ids=" ".join)
def test_experts_equal_transformers(name, layout, tmp_path):
    _compare(random_model(name), EXPERTS[layout], tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["ep2", "tp2pp2ep2"])
def test_several_experts_a_rank_equal_transformers(layout, tmp_path):
    _compare(random_experts(4), EXPERTS[layout], tmp_path)


@pytest.mark.distributed
# With tensor-parallel experts, ranks that share one gather unequal numbers of tokens, which gloo
# can't.
@pytest.mark.parametrize("renormalized", [False, True])
@pytest.mark.parametrize("layout", ["tp1", "ep2", "tp2ep2etp1"])
def test_fewer_active_experts_equal_transformers(layout, renormalized, tmp_path):
    model = random_experts(6, num_experts_per_tok=4, norm_topk_prob=renormalized)
    _compare(model, EXPERTS[layout], tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize("name", models_hf.MIXTURES)
def test_published_mixtures_equal_transformers(name, tmp_path):
    """As Qwen3-30B-A3B routes: few of many experts, whose probabilities sum to 1."""
    model = random_model(name, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True)
    _compare(model, EXPERTS["ep2"], tmp_path)
