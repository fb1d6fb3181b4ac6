"""Gradients of packed documents are numbers, whatever their lengths and whatever was in memory.

Those of Transformer Engine were not on an H200; docs/gpu.md says what is known of that. Each of its
cases that fails names one condition.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_bar.data.batch import to_batch
from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.models.attention_choice import MASKS, TRANSFORMER_ENGINE, VARLEN
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze, group_sizes
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.step import forward_backward
from tests.unwritten import unwritten_is_nan

# Lengths of documents, again and again until a row is full or, with 0 at the end, then padding.
LENGTHS = {
    "one token each": [1],
    "one token beside long ones": [300, 1, 200, 1],
    "ends with half a tile of 128": [64, 192, 320],
    "whole tiles": [128, 256],
    "chats, then padding": [37, 151, 89, 412, 0],
}


def _rows(lengths: list[int], row_length: int, seed: int) -> PackedRows:
    random = np.random.default_rng(seed)
    documents = np.zeros((2, row_length), np.int32)
    pattern = [length for length in lengths if length]
    room = row_length * 7 // 8 if 0 in lengths else row_length
    for row in documents:
        start = number = 0
        # The number of documents differs from step to step, as in training.
        while start + (length := pattern[(number + seed) % len(pattern)]) <= room:
            row[start : start + length] = number = number + 1
            start += length
    tokens = np.where(documents > 0, random.integers(1, 512, documents.shape), 0)
    sources = np.where(documents > 0, 0, -1).astype(np.int16)
    learned = documents > 0
    return PackedRows(tokens.astype(np.int32), learned, documents, sources, PackReport())


@pytest.mark.parametrize("scores", ["usual", "low"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(
    "kind",
    [
        VARLEN,
        MASKS,
        pytest.param(
            TRANSFORMER_ENGINE,
            marks=pytest.mark.xfail(reason="cuDNN's backward pass, see docs/gpu.md"),
        ),
    ],
)
def test_all_gradients_are_numbers(kind, lengths, scores, row_length):
    config = ModelConfig(512, 256, 352, 2, 4, 4, max_position_embeddings=row_length)
    with process_groups(Layout()):
        try:
            model = build_model(config, Layout(), torch.bfloat16, attention=kind)
        except BarError as error:
            pytest.skip(str(error))
        for layer in model.decoder.layers if scores == "low" else []:
            # Of the first tokens of documents many see scores below -88.7, e^88.7 being the largest
            # fp32 number.
            layer.self_attention.q_norm.weight.data.fill_(12.0)
            layer.self_attention.k_norm.weight.data.fill_(12.0)
        freeze(model, config, list(group_sizes(config)))
        wrapped = wrap(model, Training(distributed_optimizer=False))
        wrapped.train()
        for seed in range(3):
            batch = to_batch(_rows(lengths, row_length, seed), 0)
            wrapped.zero_grad_buffer()
            with unwritten_is_nan():
                forward_backward(wrapped, [batch])
            bad = [n for n, p in model.named_parameters() if not p.main_grad.isfinite().all()]
            assert not bad, f"step {seed}: {bad}"
