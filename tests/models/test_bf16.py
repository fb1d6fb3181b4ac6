"""How far bf16 is from fp32: transformers in bf16 is the judge, group by group."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from megatron_bar.checkpoints.model_io import load_model, stacked_gradients
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.models.rope import places_in_documents, rotated
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from tests.models_hf import imported, packed_batch, random_model, reference

AT_MOST = 1.2  # times the error of transformers
BATCHES = 4


def _ours(checkpoint, batch) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    config = ModelConfig.load(checkpoint)
    model = build_model(config, Layout(), torch.bfloat16)
    load_model(model, checkpoint)
    losses_BS = model(batch.tokens_BS, batch.positions_BS, batch.attention_mask_B1SS,
                      labels=batch.labels_BS)
    ((losses_BS * batch.loss_mask_BS).sum() / batch.loss_mask_BS.sum()).backward()
    return config, stacked_gradients(model)


def _errors(name: str, folder) -> dict[str, list[float]]:
    """By group: sums of squares of transformers' error in bf16, and of ours."""
    theirs = random_model(name, max_position_embeddings=256).bfloat16()
    checkpoint = imported(theirs, folder)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    with process_groups(Layout()):
        for seed in range(BATCHES):
            batch = packed_batch(theirs.config.vocab_size, 4, 128, seed)
            _, _, in_bf16 = reference(theirs, batch)
            in_bf16 = {key: gradient.float().clone() for key, gradient in in_bf16.items()}
            _, _, exact = reference(random_model(name, max_position_embeddings=256)
                                    .bfloat16().float(), batch)
            config, ours = _ours(checkpoint, batch)
            for slot in slots(config):
                stacked = ours[slot.key][slot.index]
                for key, gradient in zip(slot.hf_names, slot.to_hf(stacked)):
                    of_group = sums[slot.name.group]
                    of_group[0] += (in_bf16[key] - exact[key]).square().sum().item()
                    of_group[1] += (gradient.float() - exact[key]).square().sum().item()
    return sums


@pytest.mark.parametrize("name", ["OLMo-2", "FlexOlmo", "OLMo-3"])
def test_gradients_are_as_near_to_fp32_as_those_of_transformers(name, tmp_path):
    for group, (theirs, ours) in _errors(name, tmp_path).items():
        ratio = (ours / theirs) ** 0.5
        print(f"{name} {group}: {ratio:.2f}")
        assert ratio <= AT_MOST, group


def test_a_rotation_in_bf16_rounds_once():
    torch.manual_seed(0)
    x, angles = torch.randn(64, 2, 3, 16).bfloat16(), torch.rand(64, 1, 1, 8).repeat(1, 1, 1, 2) * 9
    exact = rotated(x.double(), angles.double().cos(), angles.double().sin())
    found = rotated(x, angles.cos(), angles.sin())
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, exact.float().bfloat16(), rtol=2**-8, atol=1e-6)


def test_a_document_begins_at_position_0():
    starts_D = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    assert places_in_documents(starts_D, 9).tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
