"""Routing of texts looks at routers alone; what they say is in tests/distributed."""

from __future__ import annotations

import numpy as np

from megatron_bar.evaluation.routed_tokens import route_texts
from megatron_bar.evaluation.token_kinds import LabelledText
from megatron_bar.models import language_model
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout

CONFIG = ModelConfig(331, 48, 80, 2, 6, 2, max_position_embeddings=64).with_experts(2)


def test_neither_head_nor_loss_is_computed(monkeypatch):
    def never(*_, **__):
        raise AssertionError("the head or the loss is computed")

    monkeypatch.setattr(language_model, "linear_loss", never)
    nothing = np.zeros(5, np.int8)
    with process_groups(Layout()):
        model = build_model(CONFIG, Layout(), sequence_parallel=False).eval()
        monkeypatch.setattr(model.output_layer, "forward", never)
        found = route_texts(
            model, [LabelledText([1, 2, 3, 4, 5], list("abcde"), nothing, nothing)], 0
        )
    assert found["tokens"] == 5
