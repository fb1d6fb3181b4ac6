"""Recomputation lowers the most that a step holds at once, in mid-training as in all of it."""

from __future__ import annotations

import pytest

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze, group_sizes, matching
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.overrides import transformer_overrides
from megatron_bar.training.step import forward_backward
from tests.live_bytes import LiveBytes
from tests.models_hf import packed_batch

CONFIG = ModelConfig(512, 64, 176, 6, 4, 4, max_position_embeddings=256).with_experts(2)


def _peak(trainable: list[str], recompute: str) -> int:
    training = Training(trainable=trainable, recompute=recompute)
    model = build_model(CONFIG, Layout(), overrides=transformer_overrides(training))
    freeze(model, CONFIG, matching(list(group_sizes(CONFIG)), trainable, "test"))
    wrapped = wrap(model, training)
    wrapped.train()
    with LiveBytes() as live:
        forward_backward(wrapped, [packed_batch(CONFIG.vocab_size, 2, 128)])
    return live.peak


@pytest.mark.parametrize("trainable", [["expert.1", "router.1"], ["*"]], ids=["expert", "all"])
def test_a_step_holds_less_with_recomputation(trainable):
    with process_groups(Layout()):
        none, moe, full = (_peak(trainable, how) for how in ("none", "moe", "full"))
    assert full < 0.6 * none and full < moe < 0.9 * none
