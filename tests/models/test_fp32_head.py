"""Logits in fp32 from a model that computes in bf16."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from tests.models.test_without_gradients import SMALL


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_the_heads_gradient_are_those_of_an_fp32_product(tied):
    torch.manual_seed(0)
    tokens_BS = torch.randint(96, (3, 7))
    with process_groups(Layout()):
        config = dataclasses.replace(SMALL, tied_embeddings=tied)
        model = build_model(config, Layout(), torch.bfloat16)
        hidden: list[torch.Tensor] = []
        model.compute_logits_in_fp32()
        model.output_layer.register_forward_hook(lambda _, inputs, __: hidden.extend(inputs))
        logits_BSV = model(tokens_BS, None, None)
        logits_BSV.square().sum().backward()
        head = (model.embedding.word_embeddings if tied else model.output_layer).weight
    hidden_BSH = hidden[0].detach().float().transpose(0, 1)
    assert logits_BSV.dtype is torch.float32 and head.dtype is torch.bfloat16
    torch.testing.assert_close(logits_BSV.detach(), hidden_BSH @ head.detach().float().T)
    if not tied:  # else its gradient has the embedding's part, too
        expected_VH = torch.einsum("bsv,bsh->vh", 2 * logits_BSV.detach(), hidden_BSH)
        torch.testing.assert_close(head.grad.float(), expected_VH, rtol=1e-2, atol=1e-3)
