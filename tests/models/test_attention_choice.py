"""Which attention computes where, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.models import attention_choice
from megatron_bar.models.attention_choice import choose_attention
from megatron_bar.runtime import devices
from megatron_bar.runtime.errors import BarError

BF16, FP32 = torch.bfloat16, torch.float32


def _pretend(has_te: bool, monkeypatch) -> None:
    """Have a GPU, with or without Transformer Engine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "transformer_engine_runs", lambda: has_te)


@pytest.fixture(params=[False, True], ids=["without TE", "with TE"])
def has_te(request, monkeypatch):
    _pretend(request.param, monkeypatch)


def test_a_gpu_goes_by_boundaries_with_and_without_transformer_engine(has_te):
    for context in (1, 2):
        choice = choose_attention("cuda", BF16, 128, context)
        assert choice.kind == "varlen" and choice.by_boundaries


@pytest.mark.parametrize(
    "device, dtype, head_dim, says",
    [
        ("cpu", BF16, 128, "no GPU"),
        ("cuda", FP32, 128, "float32"),
    ],
)
def test_masks_where_flash_attention_cannot_be_used(has_te, device, dtype, head_dim, says):
    choice = choose_attention(device, dtype, head_dim)
    assert choice.kind == "masks" and not choice.by_boundaries and says in choice.reason


def test_transformer_engine_where_torch_has_no_varlen(monkeypatch):
    """torch 2.9 has none, 2.10 one without windows."""
    monkeypatch.setattr(attention_choice, "varlen_parameters", lambda: ("query", "is_causal"))
    _pretend(True, monkeypatch)
    choice = choose_attention("cuda", BF16, 128)
    assert choice.kind == "transformer_engine" and "no varlen attention" in choice.reason
    assert choose_attention("cuda", BF16, 128, context=2).kind == "masks"


@pytest.mark.parametrize("head_dim", [60, 320])
def test_heads_that_flash_attention_does_not_take(head_dim):
    assert f"these have {head_dim}" in choose_attention("cuda", BF16, head_dim).reason


def test_a_wish_is_granted_or_refused():
    assert choose_attention("cuda", BF16, 128, wanted="masks").kind == "masks"
    with pytest.raises(BarError, match="varlen can't be used here, as the device is no GPU"):
        choose_attention("cpu", BF16, 128, wanted="varlen")
    with pytest.raises(BarError, match="there are auto, varlen"):
        choose_attention("cpu", BF16, 128, wanted="flash")
