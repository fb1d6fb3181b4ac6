"""No code of ours reads memory before it is written."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze, group_sizes, matching
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.overrides import transformer_overrides
from megatron_bar.training.step import forward_backward
from tests.models.shapes import SMALL
from tests.models_hf import packed_batch
from tests.unwritten import unwritten_is_nan

SFT = ["expert.2", "router.2", "embeddings", "head", "final_norm"]


@pytest.mark.parametrize(
    "config, dtype, settings",
    [
        (SMALL, torch.bfloat16, {}),
        (SMALL.with_experts(3), torch.bfloat16, {"trainable": SFT}),
        (SMALL.with_experts(3), torch.float32, {"recompute": "full"}),
        (
            SMALL.with_experts(3),
            torch.float32,
            {"trainable": SFT, "megatron": {"gradient_accumulation_fusion": True}},
        ),
    ],
    ids=["dense", "sft", "recomputed", "added in products"],
)
def test_gradients_do_not_depend_on_what_was_in_memory_before(config, dtype, settings):
    training = Training(**{"trainable": ["*"]} | settings)
    batch = packed_batch(config.vocab_size)
    found = []
    with process_groups(Layout()):
        model = build_model(config, Layout(), dtype, overrides=transformer_overrides(training))
        freeze(model, config, matching(list(group_sizes(config)), training.trainable, "test"))
        wrapped = wrap(model, training)
        wrapped.train()
        opened = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def step() -> None:
            wrapped.zero_grad_buffer()
            forward_backward(wrapped, [batch, batch])
            found.append([parameter.main_grad.clone() for parameter in opened])

        step()
        with unwritten_is_nan():
            assert torch.empty(3).isnan().all() or torch.cuda.is_available()
            step()
    for plain, filled in zip(*found):
        assert torch.equal(plain, filled)


def test_attention_with_a_mask_keeps_away_from_cudnn():
    """Its gradients are no numbers where scores are low (pytorch 196678)."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    with process_groups(Layout()):
        build_model(SMALL, Layout())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
