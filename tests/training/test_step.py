"""A step tells the same whether rows are kept apart by a mask or, end to end, by boundaries."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.data.batch import to_batch
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.bad_steps import describe_items
from megatron_bar.training.step import forward_backward
from megatron_bar.training.validation import validation_losses
from tests.distributed.stages import rows

CONFIG = ModelConfig(331, 48, 80, 2, 6, 2, max_position_embeddings=64).with_experts(2)
MICRO_BATCH_SIZE = 3


class _WithoutTransformerEngine(torch.nn.Module):
    """The model, told about boundaries by the mask they stand for."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.config = module, module.config

    def forward(self, tokens_BS, positions_BS, attention_mask_B1SS, labels, packed_seq_params):
        if packed_seq_params is not None:
            place_S = torch.arange(tokens_BS.shape[1])
            document_S = torch.bucketize(place_S, packed_seq_params.cu_seqlens_q, right=True)
            same_SS = document_S[:, None] == document_S
            attention_mask_B1SS = ~same_SS.tril()[None, None]
        return self.module(tokens_BS, positions_BS, attention_mask_B1SS, labels=labels)


@pytest.fixture
def model():
    with process_groups(Layout()):
        yield _WithoutTransformerEngine(build_model(CONFIG, Layout()))


@pytest.fixture(params=[False, True], ids=["mask", "boundaries"])
def batches(request, monkeypatch):
    """Six rows in two micro-batches; whatever else makes batches makes them alike."""
    monkeypatch.setattr(
        "megatron_bar.data.batch.attention_by_boundaries", lambda context: request.param
    )
    return [to_batch(rows().take(range(start, start + MICRO_BATCH_SIZE)), 0)
            for start in (0, MICRO_BATCH_SIZE)]


def test_losses_of_rows_and_sources(model, batches):
    with torch.no_grad():
        result = forward_backward(model, batches, sources=2, train=False)
        each = [forward_backward(model, [to_batch(rows().take([row]), 0, boundaries=False)],
                                 sources=2, train=False) for row in range(6)]
    assert result.row_losses == pytest.approx([one.row_losses[0] for one in each], rel=1e-4)
    assert result.tokens == sum(one.tokens for one in each)
    torch.testing.assert_close(result.by_source_D2, sum(one.by_source_D2 for one in each),
                               rtol=1e-4, atol=1e-4)


def test_a_bad_step_names_its_rows(model, batches):
    losses = [1.0, 5.0, 2.0, float("nan"), 3.0, float("inf")]
    described = describe_items(torch.arange(10, 16).numpy(), batches, losses, ("one", "two"))
    assert described == "rows 13 of one+two, 15 of one+two"


def test_validation_counts_every_row_once(model, batches):
    """Four rows in micro-batches of three: two places are left over."""
    losses = validation_losses(model, rows(4), 0, MICRO_BATCH_SIZE)
    with torch.no_grad():
        whole = forward_backward(model, [to_batch(rows(4), 0, boundaries=False)], 2, train=False)
    assert losses["validation_loss"] == pytest.approx(whole.loss, rel=1e-4)
