"""A step tells the same whether rows are kept apart by a mask or, end to end, by boundaries."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_bar.data.batch import to_batch
from megatron_bar.models import attention
from megatron_bar.models.attention_choice import AttentionChoice
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training import step
from megatron_bar.training.bad_steps import describe_items
from megatron_bar.training.objective import TOKENS
from megatron_bar.training.step import forward_backward
from megatron_bar.training.validation import validation_losses
from tests.distributed.stages import rows
from tests.varlen import varlen_one_by_one

CONFIG = ModelConfig(331, 48, 80, 2, 6, 2, max_position_embeddings=64).with_experts(2)
MICRO_BATCH_SIZE = 3


@pytest.fixture(params=["masks", "varlen"])
def model(request, monkeypatch):
    monkeypatch.setattr(attention, "varlen_attention", varlen_one_by_one)
    with process_groups(Layout()):
        model = build_model(CONFIG, Layout())
        model.attention = AttentionChoice(request.param, "the test wants it")
        yield model


@pytest.fixture
def batches():
    """Six rows in two micro-batches."""
    return [
        to_batch(rows().take(range(start, start + MICRO_BATCH_SIZE)), 0)
        for start in (0, MICRO_BATCH_SIZE)
    ]


def gradients(model, batches, kind):
    model.attention = AttentionChoice(kind, "the test wants it")
    model.zero_grad()
    model.config.grad_scale_func = None
    forward_backward(model, batches, sources=2)
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_boundaries_give_the_gradients_of_the_mask(model, batches):
    found, expected = (gradients(model, batches, kind) for kind in ("varlen", "masks"))
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_losses_of_rows_and_sources(model, batches):
    with torch.no_grad():
        result = forward_backward(model, batches, sources=2, train=False)
        each = [
            forward_backward(model, [to_batch(rows().take([row]), 0)], sources=2, train=False)
            for row in range(6)
        ]
    assert result.row_losses == pytest.approx([one.row_losses[0] for one in each], rel=1e-4)
    assert result.tokens == sum(one.tokens for one in each)
    torch.testing.assert_close(
        result.by_source_D2, sum(one.by_source_D2 for one in each), rtol=1e-4, atol=1e-4
    )


def test_a_bad_step_names_its_rows(model, batches):
    losses = [1.0, 5.0, 2.0, float("nan"), 3.0, float("inf")]
    described = describe_items(torch.arange(10, 16).numpy(), batches, losses, ("one", "two"))
    assert described == "rows 13 of one+two, 15 of one+two"


def test_validation_counts_every_row_once(model, batches):
    """Four rows in micro-batches of three: two places are left over."""
    losses = validation_losses(model, rows(4), 0, MICRO_BATCH_SIZE)
    with torch.no_grad():
        whole = forward_backward(model, [to_batch(rows(4), 0)], 2, train=False)
    assert losses["validation_loss"] == pytest.approx(whole.loss, rel=1e-4)


class Syncs(TorchDispatchMode):
    """The operations whose result the host has to wait for, were they on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero"):
            self.names.append(name)
        return function(*args, **kwargs or {})


def test_no_micro_batch_makes_the_host_wait(model, batches, monkeypatch):
    """Its forward and backward pass and its loss; a mask or boundaries are there before."""

    def causal(q_TND, k_TKD, v_TKD, *_, **__):
        q_NTD, k_KTD, v_KTD = (x.transpose(0, 1) for x in (q_TND, k_TKD, v_TKD))
        return torch.nn.functional.scaled_dot_product_attention(
            q_NTD[None],
            k_KTD[None],
            v_KTD[None],
            is_causal=True,
            enable_gqa=True,
        )[0].transpose(0, 1)

    monkeypatch.setattr(attention, "varlen_attention", causal)
    batch = batches[0]
    if model.attention.by_boundaries:
        batch = batch.in_one_sequence()
    with Syncs() as syncs:
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(
                torch.Tensor, name, lambda self, name=name: syncs.names.append(name)
            )
        loss_BS, finish = step._forward_step(iter([batch]), model, TOKENS, torch.tensor(1.0), 2)
        loss, _ = finish(loss_BS)
        loss.backward()
    monkeypatch.undo()
    assert syncs.names == []
