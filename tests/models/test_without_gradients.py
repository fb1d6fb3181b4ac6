"""Generating and evaluating: the same numbers as in training, and nothing kept for a backward."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from tests.models.shapes import SMALL


@pytest.mark.parametrize("model_config", [SMALL, SMALL.with_experts(3)], ids=["dense", "experts"])
def test_the_same_comes_out_and_no_layer_keeps_a_graph(model_config):
    torch.manual_seed(0)
    tokens_BS = torch.randint(96, (3, 7))
    with process_groups(Layout()):
        model = build_model(model_config, Layout()).eval()
        kept = []
        for layer in model.decoder.layers:
            layer.register_forward_hook(lambda _, __, output: kept.append(output[0].requires_grad))
        with_gradients = model(tokens_BS, None, None)
        assert kept == [True, True]
        kept.clear()
        with torch.no_grad():
            without = model(tokens_BS, None, None)
        assert kept == [False, False]
    torch.testing.assert_close(without, with_gradients.detach(), rtol=1e-5, atol=1e-6)
