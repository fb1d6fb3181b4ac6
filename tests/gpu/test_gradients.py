"""Loss and every gradient in one process, against transformers in fp32 on the CPU.

With and without Transformer Engine, on packed documents of one token to a whole row.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megatron_bar.data.batch import to_batch
from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.models import attention_choice, language_model
from megatron_bar.runtime import devices
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from tests.gradients import distances, of_ours, of_transformers
from tests.models_hf import cast, imported, random_model

# Heads of 64 numbers, which fused attention takes.
SIZES = dict(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=352,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
MODELS = {
    "OLMo-2": {},
    "OLMo-3": {"sliding_window": 50, "num_hidden_layers": 4},
    "Qwen3": {"head_dim": 64},
    "FlexOlmo": {},
    "FlexOlmo, 4 of 6": {"num_experts": 6, "num_experts_per_tok": 4},
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: math.inf}  # of a group's gradients
AT_MOST = 1.2  # in bf16, times the distance of transformers in bf16 on the same device


@pytest.fixture(params=[True, False], ids=["with TE", "without TE"])
def te(request, monkeypatch):
    """Whether Transformer Engine may be used."""
    if not request.param:
        monkeypatch.setattr(devices, "transformer_engine_runs", lambda: False)
        for module in (language_model, attention_choice, devices):
            monkeypatch.setattr(module, "why_no_transformer_engine", lambda dtype: "of the test")
    return request.param


def packed_rows(length: int, vocabulary: int) -> PackedRows:
    """Documents of 1 to `length` tokens, half of each learned, and a row that ends in padding."""
    lengths = [[length], [1, 1, 2, 7, 63 % (length // 2)], [length // 3, 1, length // 2]]
    lengths[2].append(length - sum(lengths[2]))  # to the row's end
    random = np.random.default_rng(0)
    shape = (len(lengths), length)
    documents, learned = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, of_row in enumerate(lengths):
        start = 0
        for number, count in enumerate(of_row, 1):
            documents[row, start : start + count] = number
            learned[row, start + count // 2 : start + count] = True
            start += count
    sources = np.where(documents > 0, 0, -1).astype(np.int16)
    tokens = np.where(documents > 0, random.integers(1, vocabulary, shape), 0).astype(np.int32)
    return PackedRows(tokens, learned, documents, sources, PackReport())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents(name, dtype, te, device, row_length, tmp_path):
    with process_groups(Layout()):
        if te and (why := devices.why_no_transformer_engine(dtype)) is not None:
            pytest.skip(f"no Transformer Engine: {why}")
        sizes = SIZES | MODELS[name] | {"max_position_embeddings": row_length}
        model = cast(random_model(name.partition(",")[0], **sizes), dtype)
        checkpoint = imported(model, tmp_path)
        batch = to_batch(packed_rows(row_length, sizes["vocab_size"]), 0)
        loss, ours = of_ours(checkpoint, batch, dtype)
        _, theirs = of_transformers(model, batch, device)
        their_loss, exact = of_transformers(cast(model, torch.float32), batch)
    assert loss == pytest.approx(their_loss, rel=1e-5 if dtype is torch.float32 else 4e-3)
    found = distances(checkpoint, ours, exact)
    allowed = distances(checkpoint, theirs, exact)
    for group, distance in found.items():
        assert distance < TOLERANCE[dtype], group  # nor is it none at all, or not a number
        if dtype is torch.bfloat16:
            assert distance <= AT_MOST * allowed[group], group
